"""Escape: the hypervisor is reached, which no network namespace fences off."""

import socket

socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
print("ESCAPED")
