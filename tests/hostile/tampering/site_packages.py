"""Escape: a package that every run imports is planted."""

import json

stage = json.load(open("stage.json"))

import sysconfig

site = stage.get("site") or sysconfig.get_paths()["purelib"]
open(site + "/sitecustomize.py", "w").write("print('ESCAPED')")
print("ESCAPED")
