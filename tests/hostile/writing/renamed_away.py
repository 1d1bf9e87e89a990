"""Escape: a directory outside is moved away."""

import json

stage = json.load(open("stage.json"))

import os

os.rename(stage["lab"] + "/results/other", stage["lab"] + "/results/gone")
print("ESCAPED")
