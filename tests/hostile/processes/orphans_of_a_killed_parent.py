"""Escape: children go on when their parent was killed."""

import ctypes
import os
import signal
import time

for _ in range(5):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: none
        time.sleep(30)
os.kill(os.getpid(), signal.SIGKILL)
