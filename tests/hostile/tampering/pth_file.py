"""Escape: a line that every start of the interpreter runs is planted."""

import json

stage = json.load(open("stage.json"))

import sysconfig

site = stage.get("site") or sysconfig.get_paths()["purelib"]
open(site + "/hostile.pth", "w").write("import os; print('ESCAPED')")
print("ESCAPED")
