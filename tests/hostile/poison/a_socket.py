"""Escape: the metrics are a socket, and reading them fails with more than a reason."""

import socket

socket.socket(socket.AF_UNIX).bind("metrics.json")
