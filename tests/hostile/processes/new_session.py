"""Escape: a process in a session of its own outlives the run."""

import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(30)
