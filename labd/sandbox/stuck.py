"""What bubblewrap may leave behind: a child that waits for a parent that was killed. Nothing of a run is in it.

bubblewrap clones the sandbox's process 1 and then tells it to go on. Killed in between, with its worker, it leaves
a child that waits for ever (bubblewrap 0.8.0; its issue 633). Seen in 24 of 235 kills within 60 ms of a start.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

_NAME = b"bwrap"
_MARKS = (b"--json-status-fd", b"--args", b"/bin/sh")


def end_stuck(uid: int) -> int:
    """SIGKILL such children of user `uid`; give how many there were. One that is being started is left alone."""
    ended = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError, ValueError):
            fd = os.pidfd_open(int(entry.name))
            try:
                # Asked while the descriptor is held: the id can't become another process's.
                if _is_stuck(entry, uid):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    ended += 1
            finally:
                os.close(fd)
    return ended


def _is_stuck(process: Path, uid: int) -> bool:
    if _comm(process) != _NAME or process.stat().st_uid != uid:
        return False
    status = dict(
        line.split(b":", 1)
        for line in (process / "status").read_bytes().splitlines()
        if b":" in line
    )
    inner_ids = status.get(b"NSpid", b"").split()
    first = len(inner_ids) > 1 and inner_ids[-1] == b"1"
    words = (process / "cmdline").read_bytes().split(b"\0")
    ours = all(mark in words for mark in _MARKS)
    return first and ours and _comm(Path("/proc") / status[b"PPid"].strip().decode()) != _NAME


def _comm(process: Path) -> bytes:
    try:
        return (process / "comm").read_bytes().strip()
    except FileNotFoundError:
        return b""
