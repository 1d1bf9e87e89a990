"""Escape: a run uses io_uring, past every filter of system calls."""

import ctypes

parameters = (ctypes.c_uint8 * 120)()
if ctypes.CDLL(None).syscall(425, 4, ctypes.byref(parameters)) >= 0:
    print("ESCAPED")
