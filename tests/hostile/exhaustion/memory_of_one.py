"""Escape: a process holds more memory than a run may."""

LIMITS = {"memory_bytes": 134217728}

import time

kept = bytearray(b"x") * (300 << 20)
time.sleep(1)
print("ESCAPED", len(kept))
