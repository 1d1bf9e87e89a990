"""Escape: a run makes a device of its own, a disk for example."""

NEEDS_ROOT = True

import os
import stat

os.mknod("zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
print("ESCAPED", open("zero", "rb").read(4))
