"""Escape: files are read through the root or the directory of another process."""

import json

stage = json.load(open("stage.json"))

import glob

for link in ("root", "cwd"):
    for path in glob.glob(f"/proc/[0-9]*/{link}"):
        try:
            if stage["token"] in open(path + stage["canary"]).read():
                print("ESCAPED", path)
        except OSError:
            pass
