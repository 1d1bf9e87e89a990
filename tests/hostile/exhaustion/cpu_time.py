"""Escape: several processes use more CPU time than a run may."""

LIMITS = {"cpu_s": 0.5}

import os
import time

for _ in range(3):
    if os.fork() == 0:
        until = time.process_time() + 0.7
        while time.process_time() < until:
            pass
        os._exit(0)
for _ in range(3):
    os.wait()
print("ESCAPED")
