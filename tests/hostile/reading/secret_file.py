"""Escape: the file of another is read."""

import json

stage = json.load(open("stage.json"))

print("ESCAPED", open(stage["canary"]).read())
