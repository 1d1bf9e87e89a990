"""Escape: a file is opened by its number, past all directories."""

NEEDS_ROOT = True

import ctypes
import os

libc = ctypes.CDLL(None)
handle = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132))
mount = ctypes.c_int()
if libc.name_to_handle_at(-100, b".", handle, ctypes.byref(mount), 0) == 0:
    fd = libc.open_by_handle_at(os.open(".", os.O_RDONLY), handle, os.O_RDONLY)
    if fd >= 0:
        print("ESCAPED", fd)
