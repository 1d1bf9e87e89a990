"""Escape: files in memory that belong to nobody hold more than a run may."""

LIMITS = {"memory_bytes": 134217728}

import os
import time

fd = os.memfd_create("hoard")
for _ in range(300):
    os.write(fd, bytes(1 << 20))
time.sleep(1)
print("ESCAPED", os.fstat(fd).st_size)
