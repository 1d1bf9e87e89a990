"""API keys: where one is read from, and that nobody else can read it there."""

import os
import stat
from pathlib import Path

from labd.errors import ConfigError

_MAX_KEY_BYTES = 4096


def read_api_key(key_env: str, key_file: str, key_credential: str = "", *, where: str) -> str:
    """Give the key that the environment variable, the file or systemd's credential holds; empty where none is named.

    Raises:
        ConfigError: it is not there, others may read it, or it is no key; `where` says whose key it is.

    """
    if key_env:
        key, source = os.environ.get(key_env, ""), f"the variable {key_env}"
        fix = f"Set {key_env} in the environment of labd on this machine"
    elif key_file:
        key, source = _from_file(key_file, where), key_file
        fix = f"Write the key, and nothing else, into {key_file}"
    elif key_credential:
        key, source = _from_credential(key_credential, where), f"the credential {key_credential}"
        fix = f"Write the key, and nothing else, into /etc/labd/keys/{key_credential}"
    else:
        return ""
    key = key.strip()
    if not key:
        raise ConfigError(f"{source} holds no key", where=where, fix=fix)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"what {source} holds is no key: one line of letters, digits and signs is wanted",
            where=where,
            fix=fix,
        )
    return key


def _from_credential(name: str, where: str) -> str:
    # Readable by this service alone, so nothing is asked of its mode; see systemd.exec(5), LoadCredential=.
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/") / f"key_{name}"
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode(errors="replace")
    except OSError as error:
        raise ConfigError(
            f"the credential {name} is not there: {error.strerror}",
            where=where,
            fix=f"Put the key into /etc/labd/keys/{name} on every machine that asks, mode 0600, and restart its"
            " labd-ray or labd-node",
        ) from error


def _from_file(key_file: str, where: str) -> str:
    path = Path(key_file).expanduser()
    try:
        with path.open("rb") as file:
            # The open file is looked at, not its name, which somebody might exchange in between.
            seen = os.fstat(file.fileno())
            if not stat.S_ISREG(seen.st_mode):
                raise ConfigError(f"{path} is not a plain file", where=where, fix="Name a file")
            if seen.st_uid != os.geteuid():
                raise ConfigError(
                    f"{path} belongs to another user",
                    where=where,
                    fix=f"chown it to the user that labd runs as, and chmod 600 {path}",
                )
            if seen.st_mode & 0o077:
                raise ConfigError(
                    f"others may read or write {path} (mode {stat.S_IMODE(seen.st_mode):04o})",
                    where=where,
                    fix=f"chmod 600 {path}",
                )
            raw = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the key file can't be read: {error.strerror}",
            where=f"{where}: {path}",
            fix="Put the key there, readable only by the user that labd runs as",
        ) from error
    if len(raw) > _MAX_KEY_BYTES:
        raise ConfigError(
            f"{path} is too long for a key", where=where, fix="Write only the key into it"
        )
    return raw.decode(errors="replace")
