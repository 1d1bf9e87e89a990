"""Escape: what others run, with the secrets in their arguments, is seen."""

import json

stage = json.load(open("stage.json"))

import glob

for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        if stage["victim_mark"].encode() in open(path, "rb").read():
            print("ESCAPED", path)
    except OSError:
        pass
