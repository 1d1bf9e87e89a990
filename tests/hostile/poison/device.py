"""Escape: the metrics are a device, and reading them never ends."""

NEEDS_ROOT = True

import os
import stat

os.mknod("metrics.json", stat.S_IFCHR | 0o666, os.makedev(1, 5))
