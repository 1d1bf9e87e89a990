"""The machines: what they say of themselves, which of them get tasks, and what is said of one that does not fit."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from labd import machine
from labd.daemon.cluster import Cluster
from labd.engine.exported import COUNTERS, GAUGES, HISTOGRAMS
from labd.engine.probe import clock_offset_s, clock_warning, version_problem
from labd.engine.types import NodeInfo
from labd.errors import NotFound
from labd.inventory import machine_lines
from labd.lab import Lab
from labd.log import file_logger, stderr_logger
from labd.scheduler import Backlog, Demand, Node, Snapshot, Waiting, plan
from labd.settings import Home

REPO = Path(__file__).parents[1]
HERE, FAR = NodeInfo("a", "ada", 2, 0), NodeInfo("b", "bob", 4, 1, local=False)
SOUND = {
    "labd": "1",
    "ray": "2",
    "python": "3",
    "clock_offset_s": 0.0,
    "problem": "",
    "warning": "",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path / "drained.json", stderr_logger())
    cluster.nodes = [HERE, FAR]
    return cluster


def names(cluster: Cluster) -> list[str]:
    return [node.name for node in cluster.usable()]


def test_a_machine_that_joins_gets_tasks_once_it_has_said_that_it_fits(cluster: Cluster) -> None:
    assert names(cluster) == ["ada"]
    cluster.tell({"b": SOUND})
    assert names(cluster) == ["ada", "bob"]
    cluster.tell({"b": {"problem": "its labd is 0.0", "warning": ""}})
    assert names(cluster) == ["ada"]


def test_a_mismatch_is_logged_once_with_what_to_do(
    tmp_path: Path,
) -> None:
    with file_logger(tmp_path / "log") as log:
        cluster = Cluster(tmp_path / "drained.json", log)
        cluster.nodes = [HERE, FAR]
        for _ in range(3):
            cluster.tell({"b": {**SOUND, "warning": clock_warning(60.0, 0.5)}})
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in said] == ["node.joined", "node.mismatch"]
    assert "at least 59 s ahead of the lab's" in said[1]["what"]
    assert "timedatectl" in said[1]["what"]
    assert said[1]["used"] is True


def test_a_drained_machine_gets_no_tasks_and_all_drained_is_a_reason(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.tell({"b": SOUND})
    (tmp_path / "drained.json").write_text('{"nodes": ["bob"]}')
    assert names(cluster) == ["ada"]
    assert cluster.why_none() == ""
    (tmp_path / "drained.json").unlink()
    (tmp_path / "drained.json").write_text('{"nodes": ["bob", "ada", "long gone"]}')
    assert names(cluster) == []
    assert "labd undrain" in cluster.why_none()
    (tmp_path / "drained.json").write_text("{ torn")
    assert names(cluster) == []
    (tmp_path / "drained.json").unlink()
    os.mkfifo(tmp_path / "drained.json")
    assert names(cluster) == []


def test_a_clock_is_called_wrong_only_where_the_way_can_not_explain_it() -> None:
    assert clock_offset_s(105.0, 100.0, 110.0) == (0.0, 5.0)
    assert clock_warning(*clock_offset_s(110.0, 100.0, 110.0)) == ""
    assert "at least 3 s behind" in clock_warning(*clock_offset_s(96.5, 99.5, 100.5))


def test_another_labd_is_a_problem_with_what_to_do() -> None:
    assert version_problem({"labd": "0.1.0"}, "0.1.0") == ""
    assert "make install" in version_problem({"labd": "0.0.9"}, "0.1.0")


def test_this_machine_is_looked_at_with_gpus_or_why_there_are_none(tmp_path: Path) -> None:
    seen = machine.look(tmp_path / "not" / "there")
    assert seen["cpus"] >= 1
    assert 0 < seen["memory_free_bytes"] <= seen["memory_bytes"]
    assert bool(seen["gpus"]) is not bool(seen["no_gpu"])
    for gpu in seen["gpus"]:
        assert 0 <= gpu["used_bytes"] <= gpu["memory_bytes"]


def test_a_machines_cpus_are_as_busy_as_they_were_since_it_was_last_asked() -> None:
    def sums(busy_s: float, all_s: float) -> dict[str, float]:
        return {"cpu_busy_s": busy_s, "cpu_all_s": all_s}

    assert machine.cpu_share(sums(100, 400), sums(115, 420)) == 0.75
    assert machine.cpu_share(sums(100, 400), sums(1, 2)) is None, "it has started anew"
    assert machine.cpu_share(sums(100, 400), sums(100, 400)) is None


def test_gpus_are_told_with_what_nvml_knows_of_them(tmp_path: Path) -> None:
    gpu: dict[str, Any] = {
        "index": 0,
        "name": "H200",
        "memory_bytes": 2**37,
        "used_bytes": 2**36,
        "busy": 0.5,
        "temperature_c": 41,
        "processes": [{"pid": 7, "name": "ollama", "used_bytes": 2**36}],
    }
    seen = {**machine.look(tmp_path), **SOUND, "gaps": [], "gpus": [gpu], "no_gpu": ""}
    lines = list(machine_lines(seen))
    assert lines[1] == "GPU 0: H200, 64.0 GiB of 128.0 GiB used, 50% busy, 41 °C"
    assert lines[2] == "  process 7 ollama 64.0 GiB"
    blind = {**gpu, "busy": None, "temperature_c": None, "processes": []}
    assert list(machine_lines({**seen, "gpus": [blind]}))[1].endswith("128.0 GiB used")


def test_tasks_are_packed_or_spread_as_the_settings_say() -> None:
    nodes = [Node("a", "a", 4, 2), Node("b", "b", 4, 2)]

    def placed(demand: Demand, *, spread: bool) -> list[str]:
        backlog = Backlog()
        for number in range(4):
            backlog.add(Waiting(str(number), 0, number, demand))
        made = plan(Snapshot(backlog, [], nodes, {}, 0, 600, spread=spread))
        return [start.node_id for start in made.starts]

    for demand in (Demand(1, 0), Demand(1, 1)):
        assert placed(demand, spread=True) == ["a", "b", "a", "b"]
    assert placed(Demand(1, 0), spread=False) == ["a", "a", "a", "a"]
    assert placed(Demand(1, 1), spread=False) == ["a", "a", "b", "b"]


def test_only_a_node_that_there_is_can_be_drained(home: Home) -> None:
    with pytest.raises(NotFound, match="none now"):
        Lab(home).drain("nobody", drained=True)


def test_the_dashboard_for_grafana_shows_what_is_exported_and_nothing_else() -> None:
    board = (REPO / "config" / "grafana.json").read_text()
    assert set(re.findall(r"ray_labd_[a-z_]+", board)) == {
        *(f"ray_labd_{name}" for name in GAUGES),
        *(f"ray_labd_{name}_total" for name in COUNTERS),
        *(f"ray_labd_{name}_bucket" for name in HISTOGRAMS),
    }
    assert len(json.loads(board)["panels"]) == 9
