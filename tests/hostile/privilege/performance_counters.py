"""Escape: a run reads the machine's performance counters."""

NEEDS_ROOT = True

import ctypes
import struct

attributes = ctypes.create_string_buffer(
    struct.pack("<IIQ", 1, 112, 0) + bytes(96)
)  # software clock
if ctypes.CDLL(None).syscall(298, attributes, 0, -1, -1, 0) >= 0:
    print("ESCAPED")
