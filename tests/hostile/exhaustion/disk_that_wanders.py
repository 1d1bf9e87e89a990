"""Escape: files that move on whenever somebody looks at their directory are not counted."""

LIMITS = {"disk_bytes": 16777216}

import ctypes
import os
import threading
import time

libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
os.makedirs("a/in", exist_ok=True)
os.makedirs("z/in", exist_ok=True)
for place in ("a", "z"):
    libc.inotify_add_watch(watch, place.encode(), 0x20 | 0x1)  # opened, read


def flee():
    there = "a"
    while True:
        os.read(watch, 4096)
        other = "z" if there == "a" else "a"
        try:
            os.rename(f"{there}/in/hoard", f"{other}/in/hoard")
            there = other
        except OSError:
            pass


with open("a/in/hoard", "wb") as file:
    threading.Thread(target=flee, daemon=True).start()
    for _ in range(48):
        file.write(bytes(1 << 20))
    file.flush()
    time.sleep(1.5)
    os.ftruncate(file.fileno(), 0)
print("ESCAPED")
