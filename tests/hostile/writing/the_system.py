"""Escape: the system's own files are changed."""

NEEDS_ROOT = True

import os
import uuid

path = f"/etc/labd-hostile-{uuid.uuid4().hex}"
open(path, "w").write("x")
os.unlink(path)
print("ESCAPED")
