"""Escape: the kernel would take away the machine's swap for a run. It is asked for one that is not there."""

NEEDS_ROOT = True

import ctypes

libc = ctypes.CDLL(None, use_errno=True)

libc.swapoff(b"/no-such-file")
if ctypes.get_errno() == 2:
    print("ESCAPED")
