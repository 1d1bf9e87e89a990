"""Escape: a run mounts something."""

NEEDS_ROOT = True

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

libc.unshare(0x00020000)
libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None)
os.mkdir("place")
if libc.mount(b"tmpfs", b"place", b"tmpfs", 0, None) == 0:
    libc.umount2(b"place", 2)
    print("ESCAPED")
