"""Escape: metrics nested a hundred thousand deep end the reader."""

open("metrics.json", "w").write(
    '{"metrics": {"score": 1}, "more": ' + "[" * 100000 + "]" * 100000 + "}"
)
