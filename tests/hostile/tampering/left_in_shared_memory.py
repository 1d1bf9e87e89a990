"""Escape: the next run finds this run's System V memory."""

RUNS = 2

import ctypes
import hashlib
import sys

libc = ctypes.CDLL(None)
key = int(hashlib.sha256(sys.argv[1].encode()).hexdigest()[:7], 16)
found = libc.shmget(key, 4096, 0o600)
if found >= 0:
    libc.shmctl(found, 0, None)
    print("ESCAPED")
else:
    libc.shmget(key, 4096, 0o1600)
