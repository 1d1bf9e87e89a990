"""What is wrong with an entry of the setting `notify`, as far as it can be seen without telling anybody anything."""

import ipaddress
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from labd.hooks.command import SEARCHED
from labd.settings import INSTALLED, NotifySettings
from labd.text import printable

_KEYS = Path("/etc/labd/keys")
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - they are refused


def problems_of(rule: NotifySettings, root: Path) -> Iterator[tuple[str, str]]:
    """Give what is wrong, and what to do about each.

    Args:
        rule: one entry.
        root: the lab's home.

    """
    if rule.command:
        yield from _program(rule.command[0], installed=root == INSTALLED)
        return
    parts = urlsplit(rule.webhook or "")
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        what = "it is sent in the clear, for everybody on the way to read"
        yield what, "Write https:// where the server can do it"
    yield from _key(rule, root)


def _program(name: str, *, installed: bool) -> Iterator[tuple[str, str]]:
    shown = printable(name, 200)
    if "/" in name and not name.startswith("/"):
        yield f"{shown} is no absolute path", "Name the program by its whole path"
        return
    found = shutil.which(name, path=":".join(SEARCHED))
    if found is None:
        there = Path(name).exists() if name.startswith("/") else False
        what = "may not be run" if there else "is not there"
        fix = f"chmod +x {shown}" if there else f"Put it there, or into {SEARCHED[0]}"
        yield f"{shown} {what}", fix
    elif installed and found.startswith(_HIDDEN):
        what = f"labd.service can't see {shown}: it has a /tmp of its own and no home directories"
        yield what, f"Put it into {SEARCHED[0]}"


def _key(rule: NotifySettings, root: Path) -> Iterator[tuple[str, str]]:
    """Look at a key's file from outside: whoever asks may be another user than the one that labd runs as."""
    if rule.key_file:
        path, mode = root / rule.key_file, 0o077
    elif rule.key_credential:
        path, mode = _KEYS / rule.key_credential, 0o077
        if not os.access(_KEYS, os.R_OK | os.X_OK):
            return
    else:
        return
    shown = printable(str(path), 200)
    try:
        found = path.stat()
    except OSError as error:
        yield (
            f"the key {shown} can't be seen: {error.strerror}",
            "Write the key, and nothing else, there",
        )
        return
    if not stat.S_ISREG(found.st_mode) or found.st_mode & mode:
        yield (
            f"the key {shown} is no plain file that only its owner may read",
            f"chmod 600 {shown}",
        )


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
