"""Escape: what the run has printed is taken back, or the log grows beyond its limit."""

import os

print("this was said")
fd = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_TRUNC)
if os.fstat(fd).st_size == 0 and os.pwrite(fd, b"ESCAPED\n" * 10, 0):
    os.lseek(1, 0, os.SEEK_END)
