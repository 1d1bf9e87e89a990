"""Escape: the results of another task are changed."""

import json

stage = json.load(open("stage.json"))

open(stage["lab"] + "/results/other/result.json", "a").write("{}")
print("ESCAPED")
