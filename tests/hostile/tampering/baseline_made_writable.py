"""Escape: the baseline is made writable, by its mode or by a mount."""

import json

stage = json.load(open("stage.json"))

import ctypes
import os

place = stage["baseline"]
libc = ctypes.CDLL(None)
for attempt in range(2):
    try:
        if attempt:
            libc.mount(
                None, place.encode(), None, ctypes.c_ulong(0x1020), None
            )  # MS_REMOUNT | MS_BIND
        os.chmod(place + "/evaluate.py", 0o777)
        open(place + "/evaluate.py", "w").write("print(1.0)")
        print("ESCAPED")
    except OSError:
        pass
