"""Escape: what an earlier run has measured is changed."""

import json

stage = json.load(open("stage.json"))

open(stage["earlier"] + "/metrics.json", "w").write('{"metrics": {"score": 0}}')
print("ESCAPED")
