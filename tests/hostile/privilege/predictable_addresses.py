"""Escape: a run turns off the protection of its programs' addresses."""

import ctypes

if ctypes.CDLL(None).personality(0x0040000) >= 0:
    print("ESCAPED")
