"""How a task's end gets on record and its file into its place, with trouble at each single call that changes a file."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from labd.archive import EVENTS
from labd.daemon import Daemon
from labd.log import stderr_logger
from labd.settings import Home
from tests.processes import wait_until
from tests.stepped import How
from tests.test_moves import Moves, ended, text

pytestmark = pytest.mark.sandbox

MAX_CALLS = 80

Hand = Callable[[Moves, str, str], None]
"""Puts a text in the place of a file."""


def by_rename(lab: Moves, place: str, content: str) -> None:
    lab.drop(place, content)


def in_place(lab: Moves, place: str, content: str) -> None:
    lab.path(place).write_text(content)


def anew(lab: Moves, place: str, content: str) -> None:
    lab.path(place).unlink()
    lab.path(place).write_text(content)


def at_each_call(
    root: Path,
    how: How,
    prepare: Callable[[Moves], None],
    somebody: Callable[[Moves], None] = lambda _lab: None,
    mode: str = "up",
) -> Iterator[Moves]:
    """Give a lab for each call that a tick makes, after a tick in which it happened at that call.

    `prepare` brings the lab to that tick. `mode` is as for `Moves`: the work lives on unless it is "killed".
    """
    for n in range(1, MAX_CALLS):
        (root / str(n)).mkdir()
        with Moves(root / str(n), mode) as lab:
            prepare(lab)
            lab.calls.arm(n, how, partial(somebody, lab))
            lab.tick()
            if not lab.calls.happened:
                assert n > 1, "the tick did nothing"
                return
            yield lab
    pytest.fail("there was no end of calls")


def lost(lab: Moves) -> None:
    lab.running()
    lab.engine.lose("x")


# --- somebody puts another file there


@pytest.mark.parametrize("hand", [by_rename, in_place, anew])
def test_a_file_mended_while_it_is_refused_runs(hand: Hand, tmp_path: Path) -> None:
    moved_back = 0

    def mends(lab: Moves) -> None:
        if lab.path("pending/x.yaml").exists():
            hand(lab, "pending/x.yaml", text("mended"))

    def prepare(lab: Moves) -> None:
        lab.drop("pending/x.yaml", "rnu: 1\n")

    for lab in at_each_call(tmp_path, "somebody", prepare, mends):
        if text("mended").encode() in lab.places().values():
            moved_back += 1
            assert "failed/x.yaml" not in lab.names(), "a good file has the bad one's refusal"
            lab.to_the_end()
            assert lab.places() == {"done/x.yaml": text("mended").encode()}
            assert lab.events("x")[-2:] == ["claimed", "done"]
    assert moved_back > 3, "nobody came in between"


@pytest.mark.parametrize("hand", [by_rename, in_place, anew])
@pytest.mark.parametrize("prepare", [ended, lost])
def test_a_file_put_in_the_place_of_one_that_ends_runs_itself(
    prepare: Callable[[Moves], None], hand: Hand, tmp_path: Path
) -> None:
    between = 0

    def replaces(lab: Moves) -> None:
        if lab.path("running/x.yaml").exists():
            hand(lab, "running/x.yaml", text("another"))

    for lab in at_each_call(tmp_path, "somebody", prepare, replaces):
        if text("another").encode() not in lab.places().values():
            continue
        between += lab.events("x")[-1] in {"done", "lost"}
        lab.to_the_end()
        assert lab.places() == {"done/x-2.yaml": text("another").encode()}
        assert lab.events("x-2") == ["claimed", "done"]
    assert between, "nobody came in between the record of the end and the move"


@pytest.mark.parametrize("hand", [by_rename, in_place, anew])
def test_a_file_put_in_the_place_of_one_that_is_moved_on_runs_itself(
    hand: Hand, tmp_path: Path
) -> None:
    between = 0

    def prepare(lab: Moves) -> None:
        lab.decided("done")
        lab.move("done/x.yaml", "running/x.yaml")

    def replaces(lab: Moves) -> None:
        if lab.path("running/x.yaml").exists():
            hand(lab, "running/x.yaml", text("another"))

    for lab in at_each_call(tmp_path, "somebody", prepare, replaces):
        if text("another").encode() in lab.places().values():
            between += 1
            lab.to_the_end()
            assert lab.places() == {"done/x-2.yaml": text("another").encode()}
            assert lab.events("x-2") == ["claimed", "done"]
    assert between, "nobody came in between"


def test_an_end_counts_only_if_the_file_is_still_there(tmp_path: Path) -> None:
    for place in ("cancelled/x.yaml", "pending/x.yaml", ""):
        root = tmp_path / f"to {place.partition('/')[0]}"
        root.mkdir()
        with Moves(root, "up") as lab:
            ended(lab)
            if place:
                lab.move("running/x.yaml", place)
            else:
                lab.path("running/x.yaml").unlink()
            lab.tick()
            event = "requeued" if place.startswith("pending") else "cancelled"
            assert lab.events("x") == ["claimed", event]


# --- the disk


@pytest.mark.parametrize(
    ("prepare", "events"), [(ended, ["claimed", "done"]), (lost, ["claimed", "lost"])]
)
def test_a_full_disk_never_has_an_end_recorded_twice(
    prepare: Callable[[Moves], None], events: list[str], tmp_path: Path
) -> None:
    unsettled = 0
    for lab in at_each_call(tmp_path, "disk full", prepare):
        unsettled += "running/x.yaml" in lab.names()
        lab.settle()
        assert lab.events("x") == events
        assert lab.names() == {"done/x.yaml" if prepare is ended else "pending/x.yaml"}
    assert unsettled, "the disk was in nobody's way"


# --- the daemon dies


@pytest.mark.parametrize("mode", ["down", "killed"])
@pytest.mark.parametrize("how", ["dies before", "dies after"])
def test_what_ended_is_recorded_once_and_moved_on_after_a_death(
    how: How, mode: str, tmp_path: Path
) -> None:
    recorded = 0
    for lab in at_each_call(tmp_path, how, ended, mode=mode):
        recorded += lab.events("x")[-1] == "done" and "running/x.yaml" in lab.names()
        lab.start()
        lab.to_the_end()
        assert lab.places() == {"done/x.yaml": text().encode()}
        assert lab.events("x") == ["claimed", "done"]
    assert recorded, "it never died between the record and the move"


@pytest.mark.parametrize("how", ["dies before", "dies after"])
def test_a_loss_is_recorded_once_whenever_it_dies(how: How, tmp_path: Path) -> None:
    recorded = 0
    for lab in at_each_call(tmp_path, how, lost, mode="down"):
        recorded += lab.events("x")[-1] == "lost" and "running/x.yaml" in lab.names()
        lab.start()
        lab.settle()
        assert lab.names() == {"pending/x.yaml"}
        assert lab.events("x") == ["claimed", "lost"]
    assert recorded, "it never died between the record and the move"


@pytest.mark.parametrize("mode", ["down", "killed"])
def test_a_torn_line_is_cut_off(mode: str, tmp_path: Path) -> None:
    torn = 0
    for lab in at_each_call(tmp_path, "dies in the middle of", ended, mode=mode):
        path = lab.archive.directory("x") / EVENTS
        torn += not path.read_bytes().endswith(b"\n")
        lab.start()
        lab.to_the_end()
        assert lab.names() == {"done/x.yaml"}
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["event"] for line in lines] == ["claimed", "done"]
    assert torn, "no line was torn"


def test_what_is_done_never_goes_on_under_its_id(tmp_path: Path) -> None:
    with Moves(tmp_path, "up") as lab:
        lab.decided("done")
        before = lab.events("x")
        lab.move("done/x.yaml", "pending/x.yaml")
        lab.to_the_end()
        assert lab.names() == {"done/x-2.yaml"}
        assert lab.events("x") == before


# --- a stop that takes the work with it


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    ("to", "event"),
    [("cancelled", "cancelled"), ("pending", "requeued"), ("nowhere", "cancelled")],
)
def test_a_stop_records_what_somebody_moved_just_before(
    to: str,
    event: str,
    seen: bool,  # noqa: FBT001 - a parameter of pytest's
    tmp_path: Path,
) -> None:
    with Moves(tmp_path, "killed") as lab:
        lab.running()
        if to == "nowhere":
            lab.path("running/x.yaml").unlink()
        else:
            lab.move("running/x.yaml", f"{to}/x.yaml")
        if seen:
            lab.tick()
        lab.stop()
        assert lab.events("x") == ["claimed", event]
        assert lab.last("x")["moved_to"] == to


def test_a_stop_that_takes_the_work_with_it_is_no_end(tmp_path: Path) -> None:
    with Moves(tmp_path, "killed") as lab:
        lab.running()
        lab.stop()
        assert lab.events("x") == ["claimed", "stopped"]
        assert lab.names() == {"pending/x.yaml"}


def test_what_is_put_back_is_known_to_wait_in_the_same_tick(tmp_path: Path) -> None:
    """It needs neither a sweep nor the watcher: a drained spool would end a daemon that waits for nobody's word."""
    with Moves(tmp_path, "killed") as lab:
        lab.running()
        lab.crash()
        lab.home = Home(tmp_path, lab.home.settings.model_copy(update={"rescan": 3600.0}))
        lab.daemon = Daemon(lab.home, stderr_logger(), engine=lab.engine)
        lab.tick()  # sweeps pending/, before the engine is up
        assert lab.names() == {"running/x.yaml"}
        lab.engine.start()
        lab.tick()
        assert lab.events("x") == ["claimed", "interrupted", "claimed"]


@pytest.mark.parametrize("once", [False, True])
def test_a_daemon_whose_work_goes_on_pauses_until_something_is_due(
    once: bool,  # noqa: FBT001 - a parameter of pytest's
    tmp_path: Path,
) -> None:
    with Moves(tmp_path, "killed") as lab:
        lab.crash()
        rarely = Home(tmp_path, lab.home.settings.model_copy(update={"rescan": 3600.0}))
        lab.daemon = daemon = Daemon(rarely, stderr_logger(), once=once, engine=lab.engine)
        lab.engine.start()
        lab.running()

        def pauses() -> bool:
            lab.tick()
            return daemon._pause_s() > 0.05

        wait_until(pauses, 10, "a pause that is worth the name")
