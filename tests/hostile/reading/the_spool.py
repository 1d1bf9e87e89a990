"""Escape: the lab's queue is read."""

import json

stage = json.load(open("stage.json"))

import os

print("ESCAPED", os.listdir(stage["lab"] + "/spool/pending"))
