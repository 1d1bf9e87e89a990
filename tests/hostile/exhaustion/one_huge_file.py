"""Escape: one file is larger than a file may be."""

import os

fd = os.open("huge", os.O_RDWR | os.O_CREAT)
os.truncate("huge", 1 << 40)
print("ESCAPED", os.fstat(fd).st_size)
os.unlink("huge")
