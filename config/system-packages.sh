#!/bin/sh
# Install the Debian or Ubuntu packages named as arguments, with sudo where that is needed, saying so.
set -eu
if ! command -v apt-get >/dev/null; then
    echo "labd: this system has no apt-get. Install what Debian calls '$*' with your own package manager, then run this again." >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "labd: needs the package(s) '$*', and there is no sudo here. As root: apt-get install $*" >&2
        exit 1
    fi
    as_root="sudo"
fi
echo "labd: installing the system package(s) $* (${as_root:+sudo }apt-get install) …"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get install -y -qq "$@" >/dev/null 2>&1 || {
    $as_root apt-get update -qq
    $as_root apt-get install -y -qq "$@" >/dev/null
}
