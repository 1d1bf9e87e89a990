"""A research task whose runs may go on at several machines: what it is given there, for how long, and who is told."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from labd import inventory
from labd.archive import spans_of
from labd.campaigns import Profile, expected_gpu_hours
from labd.engine.types import NodeInfo
from labd.lab import Lab as People
from labd.scheduler import Start
from labd.settings import Home, LlmSettings, Settings
from tests.factories import task_text
from tests.stepped import WELL, Lab

BOB, CYD = "n2", "n3"
LATER_S = 400.0
SOUND = dict(WELL)
BIG = "kind: command\nrun: 'true'\nnum_cpus: 2\n"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Three machines with two CPUs each, of which the last has not said yet what it is."""
    with Lab(tmp_path) as lab:
        lab.engine.nodes += [
            NodeInfo(BOB, "bob", 2.0, 0.0, local=False),
            NodeInfo(CYD, "cyd", 2.0, 0.0, local=False),
        ]
        lab.start()
        lab.engine.tell(n1=SOUND, n2=SOUND)
        lab.settle()
        yield lab


def drop(lab: Lab, name: str, text: str) -> None:
    lab.path(f"pending/{name}.yaml").write_text(text)
    lab.settle()


def wide(lab: Lab, **keys: object) -> None:
    """Bring a task to where the engine has it that asked for all machines."""
    drop(lab, "wide", task_text(num_cpus=2, num_nodes=3, **keys))


def restart_with_work(lab: Lab) -> None:
    """Start the next daemon, for which there is as much to do as two machines could."""
    for name in ("a", "b"):
        lab.path(f"pending/{name}.yaml").write_text(BIG)
    lab.start()
    lab.engine.tell(n1=SOUND, n2=SOUND)
    lab.settle()


def where(lab: Lab) -> dict[str, tuple[str, ...]]:
    """Give the machines that each attempt at work has."""
    return {a.job.task_id: (a.job.node_id, *a.job.also_nodes) for a in lab.engine.live()}


def told(lab: Lab, task_id: str = "wide") -> tuple[str, ...]:
    """Give the machines that people are told of."""
    lab.clock.jump(10)
    lab.tick()
    return People(lab.home).find(task_id).nodes


def test_the_attempt_is_given_what_is_idle_and_sound_and_all_are_told(lab: Lab) -> None:
    wide(lab)
    assert where(lab) == {"wide": ("n1", BOB)}
    claim = lab.history("wide").last
    assert (claim["node"], claim["also"]) == ("n1", [BOB])
    assert told(lab) == ("here", "bob")
    lab.engine.tell(n1=SOUND, n2=SOUND, n3=SOUND)
    drop(lab, "next", BIG)
    drop(lab, "last", BIG)
    assert where(lab) == {"wide": ("n1", BOB), "next": (CYD,)}
    assert "also" not in lab.history("next").last
    assert lab.daemon is not None
    [waits] = lab.daemon._facts(stopped=False)["classes"]
    assert waits["reason"].endswith("0 free, 2 used by wide")


def test_what_it_had_everywhere_is_free_when_it_has_ended(lab: Lab) -> None:
    wide(lab, max_retries=0)
    for name in ("a", "b"):
        drop(lab, name, BIG)
    assert set(where(lab)) == {"wide"}
    lab.engine.lose("wide")
    lab.settle()
    assert where(lab) == {"a": ("n1",), "b": (BOB,)}


def test_who_waits_comes_before_a_second_machine(lab: Lab) -> None:
    lab.path("paused").touch()
    drop(lab, "other", BIG)
    wide(lab)
    lab.path("paused").unlink()
    lab.settle()
    assert sorted(map(len, where(lab).values())) == [1, 1]


def test_a_drained_machine_is_not_given_and_one_that_was_shows_its_task_until_that_ends(
    lab: Lab,
) -> None:
    wide(lab)
    told(lab)
    seen = People(Home(lab.home.root, Settings(llm=LlmSettings(discover=False))))
    seen.drain("bob", drained=True)
    assert told(lab) == ("here", "bob")
    with lab.spool.held():  # as a daemon's own process does
        running = {node["name"]: node["running"] for node in inventory.nodes(seen)}
    assert running == {"here": ["wide"], "bob": ["wide"], "cyd": []}
    lab.engine.lose("wide")
    lab.settle()
    lab.clock.jump(LATER_S)
    lab.settle()
    assert where(lab) == {"wide": ("n1",)}


@pytest.mark.parametrize("killed", [True, False])
def test_the_next_daemon_knows_what_an_attempt_has(lab: Lab, *, killed: bool) -> None:
    wide(lab)
    lab.crash() if killed else lab.stop()
    restart_with_work(lab)
    assert where(lab) == {"wide": ("n1", BOB)}
    assert told(lab) == ("here", "bob")


def test_what_an_unwanted_attempt_has_is_not_free_before_it_has_ended(lab: Lab) -> None:
    wide(lab)
    lab.crash()
    lab.move("running/wide.yaml", "cancelled/wide.yaml")
    restart_with_work(lab)
    assert where(lab) == {"wide": ("n1", BOB)}
    lab.engine.ack_cancel("wide")
    lab.settle()
    assert where(lab) == {"a": ("n1",), "b": (BOB,)}


def test_a_further_machine_that_leaves_is_forgotten_and_the_attempt_goes_on(lab: Lab) -> None:
    wide(lab)
    lab.engine.leave(BOB)
    lab.settle()
    assert [a.cancelled for a in lab.engine.live()] == [False]
    assert told(lab) == ("here",)
    lab.crash()
    lab.start()
    lab.settle()
    assert told(lab) == ("here",)
    assert lab.history("wide").attempt == 1


def test_a_file_that_asks_for_fewer_machines_than_was_planned_for_is_not_claimed(
    lab: Lab,
) -> None:
    lab.path("paused").touch()
    wide(lab)
    file = lab.path("pending/wide.yaml")
    planned_ns = file.stat().st_mtime_ns
    file.write_text(task_text(num_cpus=2, num_nodes=1))
    os.utime(file, ns=(planned_ns, planned_ns))
    assert lab.daemon is not None
    start = Start("wide.yaml", "n1", (), (BOB,))
    assert lab.daemon._attempts.claim(start, lab.daemon._intake) is None
    lab.path("paused").unlink()
    lab.settle()
    assert where(lab) == {"wide": ("n1",)}


def test_hours_are_counted_on_all_machines() -> None:
    claim = {"event": "claimed", "at": "2026-11-27T00:00:00Z", "num_cpus": 2, "num_gpus": 0.5}
    done = {"event": "done", "at": "2026-11-27T01:00:00Z", "duration_s": 3600}

    def held(**more: object) -> tuple[float, float]:
        [span] = spans_of([{**claim, **more}, done])[0]
        return span.num_cpus, span.num_gpus

    assert held() == held(also=[]) == (2, 0.5)
    assert held(also=["b", "c"]) == (6, 1.5)
    assert held(also="bc") == held(also=None) == (2, 0.5), "nothing that we wrote"
    keys = {"template": "t", "model": "m", "num_gpus": 0.5, "num_nodes": 3}
    profiles = {"t/m": Profile(duration_s=7200), "t": Profile(duration_s=7200)}
    one = expected_gpu_hours({**keys, "num_nodes": 1}, profiles)
    assert one > 0
    assert expected_gpu_hours(keys, profiles) == pytest.approx(3 * one)
