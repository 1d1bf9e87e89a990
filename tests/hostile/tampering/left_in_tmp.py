"""Escape: the next run finds what this run left in /tmp, in shared memory, or at home."""

RUNS = 2

import os
import sys

for place in ("/tmp", "/dev/shm", os.path.expanduser("~")):
    path = f"{place}/left-{sys.argv[1]}"
    if os.path.exists(path):
        os.unlink(path)
        print("ESCAPED", place)
    else:
        open(path, "w").close()
