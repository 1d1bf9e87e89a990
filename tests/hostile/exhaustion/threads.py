"""Escape: more threads live at one time than a run may have."""

LIMITS = {"processes": 32}

import threading

threading.stack_size(65536)
over = threading.Event()
threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(150)]
try:
    for thread in threads:
        thread.start()
    print("ESCAPED")
finally:
    over.set()
