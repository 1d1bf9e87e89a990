"""Escape: there are other processes that a signal would reach. None is sent."""

import os

os.kill(-1, 0)
print("ESCAPED")
