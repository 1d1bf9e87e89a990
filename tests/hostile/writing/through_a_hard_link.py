"""Escape: a file outside is changed through another name for it."""

import json

stage = json.load(open("stage.json"))

import os

os.link(stage["canary"], "mine")
open("mine", "a").write("x")
print("ESCAPED")
