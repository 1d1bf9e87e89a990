"""Escape: more processes live at one time than a run may have. It makes 150 at most."""

LIMITS = {"processes": 32}

import os
import time

alive = 0
for _ in range(150):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    alive += 1
print("ESCAPED", alive)
