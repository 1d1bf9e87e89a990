"""Escape: true is taken for 1."""

open("metrics.json", "w").write('{"metrics": {"score": true}}')
