"""Escape: the environment of another process, where tokens are, is read."""

import json

stage = json.load(open("stage.json"))

import glob

for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        if stage["token"].encode() in open(path, "rb").read():
            print("ESCAPED", path)
    except OSError:
        pass
