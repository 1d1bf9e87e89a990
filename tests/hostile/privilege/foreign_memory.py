"""Escape: a run reads the memory of another process by a system call."""

import ctypes
import os

libc = ctypes.CDLL(None)
there = ctypes.create_string_buffer(b"secret")
here = ctypes.create_string_buffer(7)


class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


mine, theirs = Part(ctypes.addressof(here), 7), Part(ctypes.addressof(there), 7)
if libc.process_vm_readv(os.getpid(), ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0) == 7:
    print("ESCAPED", here.value)
