"""How most programs would read what a run left: the negative of what labd does."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

work = Path(sys.argv[1])
names = [os.fsencode(entry.name) for entry in work.iterdir()]
sys.stdout.buffer.write(b" ".join(names) + b"\n")
if (work / "metrics.json").exists() or (work / "metrics.json").is_symlink():
    read = json.loads((work / "metrics.json").read_text())
    score = read["metrics"]["score"]
    print(score, float(score), read.get("secret", ""))
    for name in read.get("curves", {}):
        print(name)
if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 256 * 1024:
    print("much memory")
shutil.rmtree(work)
