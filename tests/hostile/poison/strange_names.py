"""Escape: names of files drive the terminal, or can't be removed."""

import os

open("metrics.json", "w").write('{"metrics": {"score": 1.0}}')
for name in (b"\x1b[2J", b"\xff\xfe", b"-rf", b"new\nline", b"n" * 255):
    open(name, "w").close()
os.mkdir("shut")
open("shut/in", "w").close()
os.chmod("shut", 0)
