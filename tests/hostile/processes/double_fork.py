"""Escape: a daemon, with nothing left to a parent, outlives the run."""

import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        time.sleep(30)
    os._exit(0)
os.wait()
