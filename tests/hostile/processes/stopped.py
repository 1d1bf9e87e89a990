"""Escape: a stopped process, which takes no signal but one, outlives the run."""

LIMITS = {"wall_s": 1.0}

import os
import signal
import time

if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(30)
os.kill(os.getpid(), signal.SIGSTOP)
