"""Escape: the kernel would reboot for a run. It is asked with a wrong magic number."""

NEEDS_ROOT = True

import ctypes

libc = ctypes.CDLL(None, use_errno=True)

libc.syscall(169, 1, 2, 3, None)
if ctypes.get_errno() == 22:
    print("ESCAPED")
