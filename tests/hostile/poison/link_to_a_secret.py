"""Escape: what is read as the metrics is a file of the host."""

import json

stage = json.load(open("stage.json"))

import os

os.symlink(stage["secret_json"], "metrics.json")
