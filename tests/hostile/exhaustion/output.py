"""Escape: more is printed than a run may print, in one line that does not end."""

LIMITS = {"output_bytes": 1048576}

import sys

for _ in range(16):
    sys.stdout.write("x" * (1 << 20))
print()
print("ESCAPED")
