"""Escape: a run changes its root."""

NEEDS_ROOT = True

import os

os.chroot(".")
print("ESCAPED")
