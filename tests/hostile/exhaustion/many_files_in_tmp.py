"""Escape: more files are made in /tmp, each with its memory in the kernel, than a run may have."""

LIMITS = {"files": 500}

import os
import shutil
import sys
import time

place = f"/tmp/many-{sys.argv[1]}"
os.mkdir(place)
try:
    for number in range(1500):
        open(f"{place}/{number}", "w").close()
    time.sleep(1)
    print("ESCAPED")
finally:
    shutil.rmtree(place)
