"""Escape: a run goes over into a namespace of another process."""

NEEDS_ROOT = True

import json

stage = json.load(open("stage.json"))

import ctypes
import os

fd = os.open(f"/proc/{stage['victim']}/ns/uts", os.O_RDONLY)
if ctypes.CDLL(None).setns(fd, 0) == 0:
    print("ESCAPED")
