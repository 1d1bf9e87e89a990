"""Escape: a descriptor of a connection is sent out to another process."""

import json

stage = json.load(open("stage.json"))

import array
import os
import socket

sender = socket.socket(socket.AF_UNIX)
sender.connect(stage["unix"])
rights = array.array("i", [os.open(".", os.O_RDONLY)])
sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
print("ESCAPED")
