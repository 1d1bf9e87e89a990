"""Escape: the results of another task are read."""

import json

stage = json.load(open("stage.json"))

print("ESCAPED", open(stage["lab"] + "/results/other/result.json").read())
