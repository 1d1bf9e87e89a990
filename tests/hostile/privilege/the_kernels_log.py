"""Escape: a run reads the kernel's messages, with addresses in them."""

NEEDS_ROOT = True

import ctypes

buffer = ctypes.create_string_buffer(4096)
if ctypes.CDLL(None).klogctl(3, buffer, 4096) >= 0:
    print("ESCAPED")
