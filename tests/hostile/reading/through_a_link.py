"""Escape: a link in the run's own directory leads out."""

import json

stage = json.load(open("stage.json"))

import os

os.symlink(stage["canary"], "link")
print("ESCAPED", open("link").read())
