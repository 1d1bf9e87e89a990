"""Escape: a run traces a process, so that it may change what it does."""

import ctypes
import os

if os.fork() == 0:
    os._exit(42 if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 0)
if os.waitstatus_to_exitcode(os.wait()[1]) == 42:
    print("ESCAPED")
