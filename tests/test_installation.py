"""What `labd doctor` says of a finished installation: ports, addresses and machines. (Units and files: tests/system.)"""

import socket
from pathlib import Path

import pytest

from labd.findings import Finding, Level
from labd.installation import (
    Listener,
    address_findings,
    examine_ports,
    is_open,
    node_findings,
    port_findings,
    read_env,
)


def names(findings: list[Finding]) -> list[str]:
    return [f"{finding.level.value}: {finding.name}" for finding in findings]


@pytest.mark.parametrize(
    ("address", "open_"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("192.168.1.7", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:0.0.0.0", True),
        ("8.8.8.8", True),
        ("nonsense", False),
    ],
)
def test_an_address_is_open_where_everybody_could_reach_it(address: str, open_: bool) -> None:  # noqa: FBT001
    assert is_open(address) is open_


def test_an_open_port_of_ray_or_ollama_is_warned_of() -> None:
    ray, ollama = Listener("::", 6399, "gcs_server"), Listener("0.0.0.0", 11434)
    assert names(list(port_findings([ray, ollama], fenced=False))) == [
        "warning: ports: ray",
        "warning: ports: ollama",
    ]
    assert names(list(port_findings([ray], fenced=True))) == []
    assert names(list(port_findings([Listener("0.0.0.0", 9, "raylet")], fenced=False)))
    near = [Listener("127.0.0.1", 6399), Listener("10.0.0.4", 11434)]
    assert names(list(port_findings(near, fenced=False))) == ["ok: ports"]


def test_a_port_that_is_really_open_is_seen() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", 6407))
        except OSError:
            pytest.skip("somebody else has this port")
        listener.listen()
        assert "warning: ports: ray" in names(list(examine_ports()))


def test_an_address_that_the_settings_have_otherwise_is_failing(tmp_path: Path) -> None:
    (tmp_path / "ray.env").write_text("# LABD_PORT=1\nLABD_ADDRESS=10.0.0.4\nLABD_PORT=\n")
    env = read_env(tmp_path / "ray.env")
    [good] = address_findings(env, "10.0.0.4:6399")
    [bad] = address_findings(env, "127.0.0.1:6399")
    assert (good.level, bad.level) == (Level.OK, Level.FAILING)
    assert "10.0.0.4:6399" in bad.fix
    assert read_env(tmp_path / "none") == {}


def test_what_is_wrong_with_a_machine_is_parted_from_what_to_do() -> None:
    wrong = {"problem": "its labd is 0.0.1. Install the same", "warning": ""}
    [finding] = node_findings({"name": "bob", "machine": wrong})
    assert (finding.level, finding.fix) == (Level.FAILING, "Install the same")
    gap = {"name": "cgroup", "what": "no limit", "fix": "Delegate"}
    late = {"problem": "", "warning": "its clock is off. Set it", "gaps": [gap]}
    assert names(list(node_findings({"name": "bob", "machine": late}))) == [
        "warning: node bob",
        "warning: node bob: sandbox: cgroup",
    ]
    good = {"problem": "", "warning": "", "gaps": []}
    assert names(list(node_findings({"name": "bob", "machine": good}))) == ["ok: node bob"]
    assert names(list(node_findings({"name": "bob", "machine": None}))) == ["note: node bob"]
