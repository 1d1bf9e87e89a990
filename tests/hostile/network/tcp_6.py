"""Escape: a service on the host's IPv6 loopback is reached."""

import json

stage = json.load(open("stage.json"))

import socket

print("ESCAPED", socket.create_connection(("::1", stage["tcp6"]), 3).recv(100))
