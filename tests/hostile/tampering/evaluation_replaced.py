"""Escape: the evaluation is replaced by a file of the same name."""

import json

stage = json.load(open("stage.json"))

import os

os.unlink(stage["baseline"] + "/evaluate.py")
open(stage["baseline"] + "/evaluate.py", "w").write("print(1.0)")
print("ESCAPED")
