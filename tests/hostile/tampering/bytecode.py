"""Escape: compiled code of a library is replaced."""

import json

stage = json.load(open("stage.json"))

import glob
import sysconfig

site = stage.get("site") or sysconfig.get_paths()["stdlib"]
for path in glob.glob(site + "/__pycache__/*.pyc")[:5]:
    try:
        open(path, "r+b").write(b"")
        print("ESCAPED")
    except OSError:
        pass
