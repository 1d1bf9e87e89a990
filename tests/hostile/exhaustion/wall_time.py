"""Escape: a run goes on after its time."""

LIMITS = {"wall_s": 0.5}

import time

time.sleep(2)
print("ESCAPED")
