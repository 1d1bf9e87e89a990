"""Escape: a setting of the kernel is written."""

NEEDS_ROOT = True

path = "/proc/sys/kernel/panic"
value = open(path).read()
open(path, "w").write(value)
print("ESCAPED")
