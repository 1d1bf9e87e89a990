"""Escape: messages that nobody reads fill the kernel's memory."""

import ctypes

libc = ctypes.CDLL(None)
queues = [libc.mq_open(f"/labd-{n}".encode(), 0o102, 0o600, None) for n in range(3)]
for n, queue in enumerate(queues):
    if queue >= 0:
        libc.mq_unlink(f"/labd-{n}".encode())
        print("ESCAPED")
