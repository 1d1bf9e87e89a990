"""Escape: more files are made than a run may leave."""

LIMITS = {"files": 500}

import os
import time

for number in range(1500):
    open(str(number), "w").close()
time.sleep(1)
for number in range(1500):
    os.unlink(str(number))
print("ESCAPED")
