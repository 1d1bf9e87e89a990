"""Escape: a run handles page faults itself, the tool of many attacks on the kernel."""

import ctypes

if ctypes.CDLL(None).syscall(323, 1) >= 0:  # userfaultfd, of user mode only
    print("ESCAPED")
