"""Escape: the code that an experiment is compared with is changed."""

import json

stage = json.load(open("stage.json"))

open(stage["baseline"] + "/experiment.py", "a").write("score = 0")
print("ESCAPED")
