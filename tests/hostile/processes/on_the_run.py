"""Escape: a process that is another one every moment outlives the run. It gives up after five seconds."""

import os
import time

until = time.monotonic() + 5
if os.fork() == 0:
    os.setsid()
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
        time.sleep(0.02)
