#!/bin/sh
# Install labd as a service, upgrade it in place, or take it away again; for Debian, Ubuntu and what is like them.
#
#   sh systemd/install.sh install        (make install; again: an upgrade)
#   sh systemd/install.sh uninstall      (make uninstall; keeps /etc/labd, /var/lib/labd and the user)
#
# PYTHON: the interpreter (3.11 or newer, not in a home directory). PIP_INSTALL_ARGS: more words for `pip install`.
set -eu
umask 022
cd "$(dirname "$0")/.."
venv=/opt/labd
etc=/etc/labd
units=/usr/local/lib/systemd/system
services="labd.service labd-ray.service labd-node.service labd-page.service"
others="labd.target labd-report.service labd-report.timer" # which end by themselves, or are no services
python=${PYTHON:-/usr/bin/python3}

die() {
    echo "labd: $*" >&2
    exit 1
}

booted() { # whether systemd runs this machine
    [ -d /run/systemd/system ]
}

require_python() {
    command -v "$python" >/dev/null || sh config/system-packages.sh python3
    "$python" -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "labd: needs Python 3.11 or newer, and %s is %d.%d: make install PYTHON=/usr/bin/python3.12" % (sys.executable, *v[:2]))'
    real=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $real in
    /root/* | /home/*) die "$real is in a home directory, which the service can't see. Name another: make install PYTHON=/usr/bin/python3" ;;
    esac
}

install_packages() {
    command -v bwrap >/dev/null || sh config/system-packages.sh bubblewrap
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null || sh config/system-packages.sh python3-venv
        "$python" -m venv "$venv"
    fi
    echo "labd: installing into $venv (a few minutes, the first time) …"
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    pip="$venv/bin/python -m pip --quiet --disable-pip-version-check --no-input"
    # Built from a copy, so that nothing is left in the source, and nothing old from there gets in.
    mkdir "$wheels/source"
    cp -R labd pyproject.toml README.md LICENSE "$wheels/source/"
    # shellcheck disable=SC2086 # the arguments are words
    $pip wheel --no-deps ${PIP_INSTALL_ARGS:-} -w "$wheels" "$wheels/source"
    # shellcheck disable=SC2086
    $pip install ${PIP_INSTALL_ARGS:-} -c config/constraints.txt "$wheels"/labd-*.whl
    # Once more without its dependencies: pip takes the same version for the same code.
    # shellcheck disable=SC2086
    $pip install ${PIP_INSTALL_ARGS:-} --no-deps --force-reinstall "$wheels"/labd-*.whl
    rm -rf "$wheels"
}

install_files() {
    install -d "$units" /usr/local/bin /usr/local/lib/sysusers.d /usr/local/lib/tmpfiles.d "$venv/share/doc"
    for unit in $services $others; do
        install -m 644 "systemd/$unit" "$units/$unit"
    done
    if [ "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 254 ]; then
        for unit in $services; do
            install -D -m 644 systemd/backoff.conf "$units/$unit.d/backoff.conf"
        done
    fi
    install -m 644 systemd/sysusers.conf /usr/local/lib/sysusers.d/labd.conf
    install -m 644 systemd/tmpfiles.conf /usr/local/lib/tmpfiles.d/labd.conf
    install -m 644 systemd/interface.conf systemd/notify.conf systemd/ollama.conf config/labd.yaml config/grafana.json "$venv/share/"
    install -m 644 docs/*.md "$venv/share/doc/"
    ln -sfn "$venv/bin/labd" /usr/local/bin/labd
}

install_settings() { # what is there stays
    systemd-sysusers labd.conf
    install -d -m 750 -g labd "$etc" "$etc/templates"
    install -d -m 700 "$etc/keys"
    [ -e "$etc/labd.yaml" ] || install -m 640 -g labd config/installed.yaml "$etc/labd.yaml"
    for name in ray.env node.env; do
        [ -e "$etc/$name" ] || install -m 644 "config/$name" "$etc/$name"
    done
    if [ ! -e "$etc/ray.token" ]; then
        (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$etc/ray.token")
    fi
    systemd-tmpfiles --create labd.conf
}

say_what_is_next() {
    if booted; then
        systemctl daemon-reload
        # The daemon and the page are new at once, and running work lives on under labd-ray, in whose workers new code
        # comes with the next task.
        systemctl try-restart labd.service labd-page.service
    fi
    cat <<END
labd: installed.
  systemctl enable --now labd.target      # start it, now and at each boot
  labd doctor                             # as root: is all well?
  adduser NAME labd                       # NAME may drop tasks into /var/lib/labd/spool/pending
  On a further machine, instead: $etc/node.env, the head's $etc/ray.token, systemctl enable --now labd-node
END
}

uninstall() {
    if booted; then
        # shellcheck disable=SC2086 # the names are words
        systemctl disable --now $others $services 2>/dev/null || true
    fi
    for unit in $services $others; do
        rm -rf "${units:?}/$unit" "${units:?}/$unit.d"
    done
    rm -f /usr/local/lib/sysusers.d/labd.conf /usr/local/lib/tmpfiles.d/labd.conf /usr/local/bin/labd
    rm -rf "$venv" /run/labd-ray /var/cache/labd-report
    if booted; then systemctl daemon-reload; fi
    echo "labd: gone. Kept: $etc, /var/lib/labd, and the user labd."
}

[ "$(id -u)" -eq 0 ] || die "as root: sudo make ${1:-install}"
command -v systemctl >/dev/null || die "this machine has no systemd"
case ${1:-} in
install)
    require_python
    install_packages
    install_files
    install_settings
    say_what_is_next
    ;;
uninstall) uninstall ;;
*) die "install or uninstall?" ;;
esac
