"""Escape: a run changes the processor's descriptor tables."""

import ctypes

if ctypes.CDLL(None).syscall(154, 0, ctypes.create_string_buffer(64), 64) >= 0:  # modify_ldt, read
    print("ESCAPED")
