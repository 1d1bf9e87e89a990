"""Escape: more files are made than a run may leave."""

LIMITS = {"files": 1000}

import os
import time

for number in range(3000):
    open(str(number), "w").close()
time.sleep(1)
for number in range(3000):
    os.unlink(str(number))
print("ESCAPED")
