"""Escape: more is kept in /tmp or in shared memory than fits the run's own."""

LIMITS = {"tmp_bytes": 33554432, "shm_bytes": 33554432}

import os
import sys
import time

for place in ("/tmp", "/dev/shm"):
    path = f"{place}/hoard-{sys.argv[1]}"
    try:
        with open(path, "wb") as file:
            for _ in range(48):
                file.write(bytes(1 << 20))
        time.sleep(0.5)
        print("ESCAPED", place)
    except OSError:
        pass
    finally:
        os.unlink(path)
