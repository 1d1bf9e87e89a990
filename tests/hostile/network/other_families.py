"""Escape: a socket of a family that nothing here needs can be made, each a door to old code."""

import socket

found = []
for family in range(3, 46):
    if family in (socket.AF_INET6, 16):
        continue
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
        try:
            socket.socket(family, kind).close()
            found.append((family, int(kind)))
        except OSError:
            pass
if found:
    print("ESCAPED", found)
