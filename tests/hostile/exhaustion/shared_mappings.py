"""Escape: shared mappings, which are no process's own data, hold more than a run may."""

LIMITS = {"memory_bytes": 134217728}

import mmap
import time

kept = [mmap.mmap(-1, 64 << 20) for _ in range(5)]
for part in kept:
    for place in range(0, 64 << 20, 4096):
        part[place] = 1
time.sleep(1)
print("ESCAPED", len(kept))
