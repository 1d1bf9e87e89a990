"""Escape: a program of the run's own comes before the system's."""

import os
import sys

for place in os.environ["PATH"].split(":"):
    try:
        path = f"{place}/hostile-{sys.argv[1]}"
        open(path, "w").close()
        os.unlink(path)
        print("ESCAPED", place)
    except OSError:
        pass
