"""Passwords of people who sign in to the page: kept as scrypt hashes, compared in constant time."""

import base64
import hashlib
import hmac
import secrets

_N, _R, _P = 2**14, 8, 1
_MAX_N = 2**18
_MAX_LENGTH = 1024
_UNKNOWN = "scrypt$16384$8$1$bm9ib2R5IGlzIGhlcmUh$" + base64.b64encode(bytes(32)).decode()


def hashed(password: str) -> str:
    """Give what the settings hold for a password: ``scrypt$n$r$p$salt$key``, the last two in base64."""
    salt = secrets.token_bytes(16)
    key = _key(password, salt, _N, _R, _P)
    return f"scrypt${_N}${_R}${_P}${_text(salt)}${_text(key)}"


def fits(password: str, wanted: str | None) -> bool:
    """Say whether a password is the one that was hashed. Takes as long where there is no such user."""
    try:
        _, n, r, p, salt, key = (wanted or _UNKNOWN).split("$")
        cost = int(n), int(r), int(p)
        if cost[0] > _MAX_N or len(password) > _MAX_LENGTH:
            return False
        found = _key(password, base64.b64decode(salt), *cost)
        same = hmac.compare_digest(found, base64.b64decode(key))
    except ValueError:
        return False
    return same and wanted is not None


def _key(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode(errors="surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=2**28, dklen=32
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
