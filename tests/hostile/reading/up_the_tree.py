"""Escape: the host's tree is reached by going up from the run's directory."""

import json

stage = json.load(open("stage.json"))

print("ESCAPED", open("../" * 30 + stage["canary"].lstrip("/")).read())
