"""Escape: directories thousands deep can't be removed."""

import os

open("metrics.json", "w").write('{"metrics": {"score": 1.0}}')
for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
