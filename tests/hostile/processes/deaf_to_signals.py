"""Escape: a run that ignores every signal that can be ignored goes on after its time."""

LIMITS = {"wall_s": 1.0}

import signal
import time

for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(30)
