"""Escape: a file is made outside."""

import json

stage = json.load(open("stage.json"))

open(stage["lab"] + "/made", "w").write("x")
print("ESCAPED")
