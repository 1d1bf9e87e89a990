"""Escape: an interface other than the loopback is there."""

import socket

others = [name for _, name in socket.if_nameindex() if name != "lo"]
if others:
    print("ESCAPED", others)
