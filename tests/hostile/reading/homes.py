"""Escape: keys in a home directory are read."""

import json

stage = json.load(open("stage.json"))

print("ESCAPED", open(stage["home"] + "/.ssh/id_ed25519").read())
