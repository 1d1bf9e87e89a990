"""Escape: many processes hold more memory together than a run may."""

LIMITS = {"memory_bytes": 134217728}

import os
import time

for _ in range(4):
    if os.fork() == 0:
        kept = bytearray(b"x") * (80 << 20)
        time.sleep(2)
        os._exit(len(kept) > 0)
time.sleep(1)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
if codes == [1, 1, 1, 1]:
    print("ESCAPED")
