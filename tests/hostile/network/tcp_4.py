"""Escape: a service on the host's loopback is reached."""

import json

stage = json.load(open("stage.json"))

import socket

print("ESCAPED", socket.create_connection(("127.0.0.1", stage["tcp"]), 3).recv(100))
