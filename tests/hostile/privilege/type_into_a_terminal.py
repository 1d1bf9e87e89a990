"""Escape: a run types into the terminal of whoever started it."""

NEEDS_ROOT = True

import fcntl
import os
import pty
import termios

pid, _ = pty.fork()
if pid == 0:
    try:
        fcntl.ioctl(0, termios.TIOCSTI, b"x")
        os._exit(42)
    except OSError:
        os._exit(0)
if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42:
    print("ESCAPED")
