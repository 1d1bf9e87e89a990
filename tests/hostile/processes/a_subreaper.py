"""Escape: children of a process that collects orphans outlive the run."""

import ctypes
import os
import time

if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(30)
        os._exit(0)
    time.sleep(30)
