"""Escape: a run puts itself before all others on the machine."""

NEEDS_ROOT = True

import os

os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
print("ESCAPED")
