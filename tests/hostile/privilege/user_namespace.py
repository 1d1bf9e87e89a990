"""Escape: a run makes itself root of a namespace, from where much more of the kernel is in reach."""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)

if libc.unshare(0x10000000) == 0:
    print("ESCAPED")
