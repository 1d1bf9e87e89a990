"""Escape: the metrics are a directory, and reading them fails with more than a reason."""

import os

os.mkdir("metrics.json")
