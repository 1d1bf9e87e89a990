"""Escape: raw packets can be sent."""

NEEDS_ROOT = True

import socket

socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
print("ESCAPED")
