"""Escape: a socket file of the host, such as a container runtime's, is reached."""

import json

stage = json.load(open("stage.json"))

import socket

sender = socket.socket(socket.AF_UNIX)
sender.settimeout(3)
sender.connect(stage["unix"])
print("ESCAPED", sender.recv(100))
