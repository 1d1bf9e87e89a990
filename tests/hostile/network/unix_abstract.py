"""Escape: an abstract socket of the host, such as a display server's, is reached."""

import json

stage = json.load(open("stage.json"))

import socket

sender = socket.socket(socket.AF_UNIX)
sender.settimeout(3)
sender.connect(b"\0" + stage["abstract"].encode())
print("ESCAPED", sender.recv(100))
