"""Escape: a process that has closed its output outlives a run that is waited for by its pipe's end."""

import os
import time

null = os.open("/dev/null", os.O_RDWR)
if os.fork() == 0:
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    time.sleep(30)
