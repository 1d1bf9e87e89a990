"""Escape: a datagram reaches the host."""

import json

stage = json.load(open("stage.json"))

import socket

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.settimeout(2)
sender.sendto(b"x", ("127.0.0.1", stage["udp"]))
print("ESCAPED", sender.recv(100))
