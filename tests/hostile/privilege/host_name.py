"""Escape: a run may rename the machine. It keeps its name."""

NEEDS_ROOT = True

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

name = os.uname().nodename.encode()
if libc.sethostname(name, ctypes.c_size_t(len(name))) == 0:
    print("ESCAPED")
