"""Escape: the lab's settings, with what is secret in them, are read."""

import json

stage = json.load(open("stage.json"))

print("ESCAPED", open(stage["lab"] + "/config/labd.yaml").read())
