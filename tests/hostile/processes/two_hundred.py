"""Escape: of a tree of two hundred processes one outlives the run."""

LIMITS = {"processes": 400}

import os
import time

for _ in range(14):
    if os.fork() == 0:
        os.setsid()
        for _ in range(14):
            if os.fork() == 0:
                os.setsid()
                time.sleep(30)
        time.sleep(30)
time.sleep(0.3)
