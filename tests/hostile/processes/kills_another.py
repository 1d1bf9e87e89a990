"""Escape: another's process is killed."""

import json

stage = json.load(open("stage.json"))

import os
import signal

os.kill(stage["victim"], signal.SIGKILL)
print("ESCAPED")
