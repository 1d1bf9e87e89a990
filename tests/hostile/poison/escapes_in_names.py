"""Escape: names of curves drive the reader's terminal, or are code in a page or a paper."""

import json

names = [
    "\x1b[2J\x1b]0;owned\x07",
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
    "x" * 100000,
    "\u202egnp.exe",
]
curves = {name: [1.0, 2.0] for name in names}
open("metrics.json", "w").write(json.dumps({"metrics": {"score": 1.0}, "curves": curves}))
