"""Escape: a file that moves on whenever somebody looks at its directory is not counted."""

LIMITS = {"disk_bytes": 16777216}

import ctypes
import os
import threading
import time

libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
for place in ("a", "z"):
    # What has to be gone through first gives the time to move.
    for level in range(4):
        directory = f"{place}/" + "x/" * level
        os.mkdir(directory)
        for number in range(200):
            open(f"{directory}{number}", "w").close()
    libc.inotify_add_watch(watch, place.encode(), 0x20)  # IN_OPEN


def flee():
    while True:
        # Each event begins with the number of its watch; the first tells who is looked at.
        seen = int.from_bytes(os.read(watch, 4096)[:4], "little")
        here, there = ("a", "z") if seen == 1 else ("z", "a")
        try:
            os.rename(f"{here}/x/x/x/hoard", f"{there}/x/x/x/hoard")
        except FileNotFoundError:
            pass


threading.Thread(target=flee, daemon=True).start()
with open("a/x/x/x/hoard", "wb", buffering=0) as file:
    for _ in range(48):
        file.write(bytes(1 << 20))
        time.sleep(0.01)
    time.sleep(1)
    os.ftruncate(file.fileno(), 0)
print("ESCAPED")
