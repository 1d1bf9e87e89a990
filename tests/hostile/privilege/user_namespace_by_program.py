"""Escape: the same by a program of the system."""

import subprocess

done = subprocess.run(
    ["unshare", "--user", "--map-root-user", "id", "-u"], capture_output=True, text=True
)
if done.stdout.strip() == "0":
    print("ESCAPED")
