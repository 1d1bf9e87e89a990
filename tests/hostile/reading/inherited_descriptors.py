"""Escape: a file that labd has open is read through a descriptor that was passed on."""

import json

stage = json.load(open("stage.json"))

import os

for name in os.listdir("/proc/self/fd"):
    try:
        if int(name) > 2 and stage["token"] in os.pread(int(name), 1000, 0).decode():
            print("ESCAPED", name)
    except (OSError, UnicodeDecodeError):
        pass
