"""Escape: the system's passwords are read."""

NEEDS_ROOT = True

print("ESCAPED", open("/etc/shadow").read()[:10])
