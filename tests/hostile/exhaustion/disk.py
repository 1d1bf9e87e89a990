"""Escape: many files hold more of the disk than a run may."""

LIMITS = {"disk_bytes": 16777216}

import os
import time

try:
    for number in range(48):
        with open(str(number), "wb") as file:
            file.write(bytes(1 << 20))
    time.sleep(1)
    print("ESCAPED")
finally:
    for number in range(48):
        if os.path.exists(str(number)):
            os.unlink(str(number))
