"""Escape: a run loads something into the kernel's own machine."""

NEEDS_ROOT = True

import ctypes

attributes = (ctypes.c_uint32 * 16)(2, 4, 4, 1)  # a map: array, key, value, one entry
if ctypes.CDLL(None).syscall(321, 0, ctypes.byref(attributes), ctypes.sizeof(attributes)) >= 0:
    print("ESCAPED")
