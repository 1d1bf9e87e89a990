"""Escape: a run uses the kernel's keyring, which no namespace fences off."""

import ctypes

libc = ctypes.CDLL(None)
key = libc.syscall(
    248, b"user", b"labd-hostile", b"x", ctypes.c_size_t(1), ctypes.c_int(-2)
)  # add_key, process keyring
if key >= 0:
    print("ESCAPED", key)
