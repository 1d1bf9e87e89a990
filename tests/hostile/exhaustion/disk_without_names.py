"""Escape: open files without a name hold more of the disk than a run may."""

LIMITS = {"disk_bytes": 16777216}

import os
import time

kept = []
for number in range(48):
    kept.append(open(str(number), "wb"))
    os.unlink(str(number))
    kept[-1].write(bytes(1 << 20))
    kept[-1].flush()
time.sleep(1)
print("ESCAPED")
