"""Escape: a run has capabilities."""

NEEDS_ROOT = True

for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapPrm")) and int(line.split()[1], 16):
        print("ESCAPED", line)
