"""Escape: a task of the run's own is dropped into the queue."""

import json

stage = json.load(open("stage.json"))

open(stage["lab"] + "/spool/pending/mine.yaml", "w").write("kind: command")
print("ESCAPED")
