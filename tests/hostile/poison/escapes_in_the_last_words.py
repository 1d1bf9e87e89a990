"""Escape: what a run says last drives the terminal of whoever reads why it failed."""

import sys

print("\x1b[2J\x1b]0;owned\x07\u202e and a \x9b31m", flush=True)
sys.exit(3)
