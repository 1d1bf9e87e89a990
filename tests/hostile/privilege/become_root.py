"""Escape: a run is root, or may become it."""

NEEDS_ROOT = True

import os

os.setresuid(0, 0, 0)
print("ESCAPED")
