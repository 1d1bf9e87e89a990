"""Escape: the next run's interpreter runs what this run left in its home."""

RUNS = 2

import pathlib
import site

place = pathlib.Path(site.getusersitepackages())
place.mkdir(parents=True, exist_ok=True)
# The second run gets here only after this file has been run, if it was.
(place / "usercustomize.py").write_text("print('ESCAPED', flush=True)")
