"""Escape: the same by another call."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
stack = ctypes.create_string_buffer(65536)
entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: os._exit(0))
top = ctypes.c_void_p(ctypes.addressof(stack) + 65536 - 64)
if libc.clone(entry, top, 0x10000000 | 17, None) > 0:
    os.wait()
    print("ESCAPED")
