"""Escape: mode or times of a file outside are changed."""

import json

stage = json.load(open("stage.json"))

import os

for change in (lambda p: os.chmod(p, 0o666), lambda p: os.utime(p, (1, 1))):
    try:
        change(stage["canary"])
        print("ESCAPED")
    except OSError:
        pass
