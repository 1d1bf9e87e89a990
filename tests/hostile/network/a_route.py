"""Escape: there is a way out: a datagram to elsewhere would be sent. None is."""

import socket

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("198.51.100.1", 9))
print("ESCAPED", sender.getsockname())
