"""Escape: a run may set the machine's clock. It only asks."""

import ctypes

state = ctypes.create_string_buffer(512)
if ctypes.CDLL(None).syscall(305, 0, state) >= 0:  # clock_adjtime
    print("ESCAPED")
