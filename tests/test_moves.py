"""Every row of the table in docs/spool.md: who moves what where, in which phase of a task, and what comes of it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labd.lab import Lab as People
from labd.task import State
from tests.conftest import REPO
from tests.stepped import Lab

pytestmark = pytest.mark.sandbox

DECIDED = ("done", "failed", "cancelled")
LATER_S = 400.0


def text(word: str = "first", run: str = "true", **keys: Any) -> str:
    """A command's task file; the word makes its bytes unlike all others."""
    more = "".join(f"{key}: {value}\n" for key, value in keys.items())
    return f"kind: command\nrun: '{run}'\n{more}# {word}\n"


class Moves(Lab):
    """A lab in which somebody moves files while the daemon is up, is down, or was killed with all its work."""

    def __init__(self, root: Path, mode: str) -> None:
        super().__init__(root, survives=mode != "killed")
        self.mode = mode
        self.start()
        self.tick()

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """What happens inside happens before the daemon looks again."""
        if self.mode == "down":
            self.stop()
        elif self.mode == "killed":
            self.crash()
        yield
        if self.daemon is None:
            self.start()

    def drop(self, place: str, content: str) -> None:
        """Write a file as an editor does that renames."""
        new = self.home.root / "new"
        new.write_text(content)
        new.rename(self.path(place))

    def at_work(self) -> set[str]:
        return {attempt.job.task_id for attempt in self.engine.live()}

    def running(self, name: str = "x.yaml", content: str | None = None) -> None:
        """Bring a task to where the engine has it."""
        self.drop(f"pending/{name}", content or text())
        self.settle()
        assert self.at_work() == {name.partition(".")[0]}

    def decided(self, state: str, name: str = "x.yaml", word: str = "first") -> None:
        """Bring a task to its end."""
        content = text(word, "false" if state == "failed" else "true")
        self.running(name, content)
        if state == "cancelled":
            self.move(f"running/{name}", f"cancelled/{name}")
        self.to_the_end()
        assert self.places() == {f"{state}/{name}": content.encode()}

    def to_the_end(self) -> None:
        """Tick, and let all work come to its end, until there is none."""
        for _ in range(8):
            self.tick()
            for attempt in self.engine.live():
                if attempt.cancelled:
                    self.engine.ack_cancel(attempt.job.task_id)
                else:
                    self.engine.finish(attempt.job.task_id)
        self.settle()
        assert not self.engine.live()

    def names(self) -> set[str]:
        return set(self.places())

    def last(self, task_id: str) -> dict[str, Any]:
        """Give the task's last event."""
        return dict(self.history(task_id).events[-1])


Row = Callable[[Moves], None]
ROWS: dict[str, Row] = {}


def row(number: str) -> Callable[[Row], Row]:
    def keep(test: Row) -> Row:
        assert number not in ROWS, f"{number} twice"
        ROWS[number] = test
        return test

    return keep


@pytest.mark.parametrize("mode", ["up", "down", "killed"])
@pytest.mark.parametrize("number", [f"M{n:02}" for n in range(1, 61)])
def test_the_row_holds(number: str, mode: str, tmp_path: Path) -> None:
    if number not in ROWS:
        pytest.fail("no test of this row")
    with Moves(tmp_path, mode) as lab:
        ROWS[number](lab)
    for state in State:
        hidden = [n for n in lab.spool.all_names(state) if n.startswith(".")]
        assert not hidden, "something was left half-done"


def test_the_table_and_the_tests_name_the_same_rows() -> None:
    table = (REPO / "docs" / "spool.md").read_text()
    assert re.findall(r"^\| (M\d\d) \|", table, re.MULTILINE) == sorted(ROWS)


# --- waiting: not read yet, or read and waiting for room


@row("M01")
def unread_to_decided(lab: Moves) -> None:
    for state in DECIDED:
        lab.drop(f"pending/{state}.yaml", text(state))
        lab.move(f"pending/{state}.yaml", f"{state}/{state}.yaml")
    with lab.by_hand():
        pass
    lab.to_the_end()
    assert lab.names() == {f"{state}/{state}.yaml" for state in DECIDED}
    assert not any(lab.archive.root.iterdir())


def full(lab: Moves) -> None:
    """Fill both slots, so that what comes next waits."""
    for name in ("a", "b"):
        lab.drop(f"pending/{name}.yaml", text(name))
    lab.settle()
    assert lab.at_work() == {"a", "b"}


@row("M02")
def waiting_to_decided(lab: Moves) -> None:
    full(lab)
    for state in DECIDED:
        lab.drop(f"pending/{state}.yaml", text(state))
    lab.tick()
    with lab.by_hand():
        for state in DECIDED:
            lab.move(f"pending/{state}.yaml", f"{state}/{state}.yaml")
    lab.to_the_end()
    assert {f"{state}/{state}.yaml" for state in DECIDED} <= lab.names()
    assert not any(lab.archive.knows(state) for state in DECIDED)


@row("M03")
def waiting_deleted(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text())
    lab.tick()
    with lab.by_hand():
        lab.path("pending/x.yaml").unlink()
    lab.to_the_end()
    assert lab.names() == {"done/a.yaml", "done/b.yaml"}
    assert not lab.archive.knows("x")


@row("M04")
def waiting_to_running(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text())
    lab.tick()
    with lab.by_hand():
        lab.move("pending/x.yaml", "running/x.yaml")
    lab.settle()
    if lab.mode != "killed":
        assert "pending/x.yaml" in lab.names()
    lab.to_the_end()
    assert "done/x.yaml" in lab.names()
    assert lab.events("x") == ["claimed", "done"]


@row("M05")
def waiting_renamed(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text())
    lab.tick()
    with lab.by_hand():
        lab.move("pending/x.yaml", "pending/y.yaml")
    lab.to_the_end()
    assert "done/y.yaml" in lab.names()
    assert not lab.archive.knows("x")


@row("M06")
def waiting_replaced_or_edited(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text(run="false"))
    lab.drop("pending/y.yaml", text(run="false"))
    lab.tick()
    with lab.by_hand():
        lab.drop("pending/x.yaml", text("replaced"))
        lab.path("pending/y.yaml").write_text(text("edited"))
    lab.to_the_end()
    assert lab.places()["done/x.yaml"] == text("replaced").encode()
    assert lab.places()["done/y.yaml"] == text("edited").encode()


@row("M07")
def waiting_copied(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text())
    lab.tick()
    with lab.by_hand():
        lab.drop("pending/y.yaml", text())
        lab.drop("running/x.yaml", text())
    lab.to_the_end()
    assert {"done/x.yaml", "done/x-2.yaml", "done/y.yaml"} <= lab.names()
    assert lab.events("x-2") == ["claimed", "done"]


@row("M08")
def waiting_out_and_back(lab: Moves) -> None:
    full(lab)
    lab.drop("pending/x.yaml", text())
    lab.tick()
    with lab.by_hand():
        lab.move("pending/x.yaml", "cancelled/x.yaml")
        lab.move("cancelled/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.events("x") == ["claimed", "done"]


# --- waiting for something else than room


@row("M09")
def gated_to_decided(lab: Moves) -> None:
    lab.drop("pending/x.yaml", text(after="nobody"))
    lab.tick()
    with lab.by_hand():
        lab.move("pending/x.yaml", "cancelled/x.yaml")
        lab.drop("pending/nobody.yaml", text("awaited"))
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml", "done/nobody.yaml"}
    assert not lab.archive.knows("x")


@row("M10")
def gated_to_running(lab: Moves) -> None:
    lab.drop("pending/x.yaml", text(after="nobody"))
    lab.tick()
    with lab.by_hand():
        lab.move("pending/x.yaml", "running/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"pending/x.yaml"}
    assert not lab.archive.knows("x")


@row("M11")
def gate_edited_away(lab: Moves) -> None:
    for name in ("x", "y"):
        lab.drop(f"pending/{name}.yaml", text(not_before="'2999-01-01T00:00:00Z'"))
    lab.tick()
    with lab.by_hand():
        lab.path("pending/x.yaml").write_text(text("edited"))
        lab.drop("pending/y.yaml", text("replaced"))
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml", "done/y.yaml"}


@row("M12")
def the_awaited_is_moved(lab: Moves) -> None:
    lab.drop("pending/x.yaml", text(after="awaited"))
    lab.drop("failed/awaited.yaml", text("awaited"))
    lab.settle()
    assert not lab.at_work()
    with lab.by_hand():
        lab.move("failed/awaited.yaml", "done/awaited.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml", "done/awaited.yaml"}


def lost(lab: Moves) -> None:
    """Bring a task to where it waits for its second attempt."""
    lab.running()
    lab.engine.lose("x")
    lab.settle()
    assert lab.names() == {"pending/x.yaml"}
    assert not lab.at_work()


@row("M13")
def retried_later_left_alone(lab: Moves) -> None:
    lost(lab)
    with lab.by_hand():
        pass
    lab.settle()
    assert not lab.at_work()
    lab.clock.jump(LATER_S)
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x") == ["claimed", "lost", "claimed", "done"]


@row("M14")
def retried_later_to_cancelled_and_back(lab: Moves) -> None:
    lost(lab)
    with lab.by_hand():
        lab.move("pending/x.yaml", "cancelled/x.yaml")
    lab.settle()
    lab.clock.jump(LATER_S)
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml"}
    with lab.by_hand():
        lab.move("cancelled/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.events("x") == ["claimed", "lost", "claimed", "done"]


@row("M15")
def retried_later_changed(lab: Moves) -> None:
    lost(lab)
    with lab.by_hand():
        lab.drop("pending/x.yaml", text("changed"))
    lab.to_the_end()
    assert lab.places() == {"done/x-2.yaml": text("changed").encode()}
    assert lab.events("x") == ["claimed", "lost"]


# --- claimed, and the engine does not have it


def claimed_only(lab: Moves) -> None:
    """Let the daemon die between the claim and the order, its work (none) with it."""
    lab.drop("pending/x.yaml", text())
    lab.engine.up = False  # the order is dropped
    lab.tick()
    assert lab.names() == {"running/x.yaml"}
    assert not lab.at_work()


@contextmanager
def unordered(lab: Moves) -> Iterator[None]:
    """By hand, while the engine is coming back without it."""
    with lab.by_hand():
        yield
    if lab.mode == "up":
        lab.engine.come_up()


@row("M16")
def claimed_left_alone(lab: Moves) -> None:
    claimed_only(lab)
    with unordered(lab):
        pass
    lab.settle()
    lab.clock.jump(LATER_S)
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    between = "lost" if lab.mode == "up" else "interrupted"
    assert lab.events("x") == ["claimed", between, "claimed", "done"]


@row("M17")
def claimed_to_decided_or_deleted(lab: Moves) -> None:
    claimed_only(lab)
    with unordered(lab):
        lab.move("running/x.yaml", "cancelled/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml"}
    assert lab.events("x").count("claimed") == 1


@row("M18")
def claimed_to_pending(lab: Moves) -> None:
    claimed_only(lab)
    with unordered(lab):
        lab.move("running/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert [e["attempt"] for e in lab.history("x").events if e["event"] == "claimed"] == [1, 2]


# --- running


@row("M19")
def running_left_alone(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        pass
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    again = {"up": [], "down": [], "killed": ["interrupted", "claimed"]}[lab.mode]
    assert lab.events("x") == ["claimed", *again, "done"]


@row("M20")
def running_to_decided(lab: Moves) -> None:
    for state in DECIDED:
        lab.running(f"{state}.yaml")
        with lab.by_hand():
            lab.move(f"running/{state}.yaml", f"{state}/{state}.yaml")
        lab.to_the_end()
        assert f"{state}/{state}.yaml" in lab.names()
        if lab.mode == "killed":
            assert lab.events(state) == ["claimed"]
        else:
            assert lab.events(state) == ["claimed", "cancelled"]
            assert lab.last(state)["moved_to"] == state


@row("M21")
def running_to_pending(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.move("running/x.yaml", "pending/x.yaml")
    lab.tick()
    if lab.mode != "killed":
        assert [(a.job.attempt, a.cancelled) for a in lab.engine.live()] == [(1, True)]
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x") == ["claimed", "requeued", "claimed", "done"]


@row("M22")
def running_deleted(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.path("running/x.yaml").unlink()
    lab.to_the_end()
    assert not lab.names()
    if lab.mode != "killed":
        assert lab.last("x")["event"] == "cancelled"
        assert lab.last("x")["moved_to"] == "nowhere"


def is_new_work(lab: Moves, word: str) -> None:
    """The file that took the place of a running one has come to its own end, under its own number."""
    lab.to_the_end()
    assert lab.places() == {"done/x-2.yaml": text(word).encode()}
    assert lab.events("x-2") == ["claimed", "done"]
    assert lab.events("x") == ["claimed"] + (["cancelled"] if lab.mode != "killed" else [])


@row("M23")
def running_replaced(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.drop("running/x.yaml", text("another"))
    is_new_work(lab, "another")


@row("M24")
def running_deleted_and_written_anew(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        # The kernel may give the new file the old one's number.
        lab.path("running/x.yaml").unlink()
        lab.path("running/x.yaml").write_text(text("another"))
    is_new_work(lab, "another")


@row("M25")
def running_edited(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.path("running/x.yaml").write_text(text("edited"))
    is_new_work(lab, "edited")


@row("M26")
def running_written_anew_with_the_same_bytes(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.drop("running/x.yaml", text())
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    again = ["interrupted", "claimed"] if lab.mode == "killed" else []
    assert lab.events("x") == ["claimed", *again, "done"]


@row("M27")
def running_copied_to_pending(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.path("pending/x.yaml").write_text(text())
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml", "done/x-2.yaml"}
    assert lab.events("x-2") == ["claimed", "done"]


@row("M28")
def running_copied_within_running(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.path("running/y.yaml").write_text(text())
        lab.path("running/x.yml").write_text(text())
    lab.to_the_end()
    ended = {Path(name).stem for name in lab.names() if name.startswith("done/")}
    assert ended == {"x", "y", "x-2"}
    for task_id in ended:
        assert lab.events(task_id).count("done") == 1
    if lab.mode == "up":
        assert lab.events("x") == ["claimed", "done"]


@row("M29")
def running_copied_to_decided(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.path("done/x.yaml").write_text(text())
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml", "done/x-2.yaml"}
    # Where the work has to begin again, the copy has its name already.
    assert lab.events("x-2" if lab.mode == "killed" else "x").count("done") == 1


@row("M30")
def running_renamed_within_running(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.move("running/x.yaml", "running/y.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/y.yaml"}
    assert lab.events("y") == ["claimed", "done"]
    assert "done" not in lab.events("x")


@row("M31")
def running_out_and_back_unseen(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.move("running/x.yaml", "cancelled/x.yaml")
        lab.move("cancelled/x.yaml", "running/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x").count("claimed") == (2 if lab.mode == "killed" else 1)


@row("M32")
def another_dropped_while_one_runs(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        lab.drop("pending/x.yaml", text("another"))
    lab.to_the_end()
    done = set(lab.places().values())
    assert done == {text().encode(), text("another").encode()}
    assert lab.names() == {"done/x.yaml", "done/x-2.yaml"}


@row("M33")
def labd_cancel_of_a_running_task(lab: Moves) -> None:
    lab.running()
    with lab.by_hand():
        People(lab.home).cancel("x")
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml"}
    assert "done" not in lab.events("x")


# --- being ended: it was moved out of running/, and its processes have not ended yet


def leaving(lab: Moves) -> None:
    lab.running()
    lab.move("running/x.yaml", "cancelled/x.yaml")
    lab.tick()
    assert [a.cancelled for a in lab.engine.live()] == [True]


def ends_old(lab: Moves) -> None:
    """Look for a while, in which the old attempt must be the only one; then let it end."""
    lab.settle()
    if lab.mode != "killed":
        assert [a.job.attempt for a in lab.engine.live()] == [1]
        lab.engine.ack_cancel("x")
    lab.to_the_end()


@row("M34")
def leaving_to_pending(lab: Moves) -> None:
    leaving(lab)
    with lab.by_hand():
        lab.move("cancelled/x.yaml", "pending/x.yaml")
    ends_old(lab)
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x").count("claimed") == 2


@row("M35")
def leaving_back_to_running(lab: Moves) -> None:
    leaving(lab)
    with lab.by_hand():
        lab.move("cancelled/x.yaml", "running/x.yaml")
    if lab.mode == "down":
        lab.to_the_end()  # a daemon that did not see it leave goes on with it
    else:
        ends_old(lab)
        assert lab.events("x").count("claimed") == 2
    assert lab.names() <= {"done/x.yaml", "pending/x.yaml"}
    lab.clock.jump(LATER_S)
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}


@row("M36")
def leaving_to_another_decided_or_deleted(lab: Moves) -> None:
    leaving(lab)
    with lab.by_hand():
        lab.move("cancelled/x.yaml", "failed/x.yaml")
    ends_old(lab)
    assert lab.names() == {"failed/x.yaml"}
    if lab.mode != "killed":
        assert lab.last("x")["moved_to"] == "failed"


@row("M37")
def another_dropped_while_one_is_leaving(lab: Moves) -> None:
    leaving(lab)
    with lab.by_hand():
        lab.drop("pending/x.yaml", text("another"))
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml", "done/x-2.yaml"}


# --- ended, and not on record yet


def ended(lab: Moves) -> None:
    lab.running()
    lab.engine.finish("x")


@row("M38")
def ended_left_alone(lab: Moves) -> None:
    ended(lab)
    with lab.by_hand():
        pass
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x") == ["claimed", "done"]


@row("M39")
def ended_to_decided(lab: Moves) -> None:
    ended(lab)
    if lab.mode == "down":
        lab.engine._news.clear()  # the daemon stops before it hears of it
    with lab.by_hand():
        lab.move("running/x.yaml", "cancelled/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"cancelled/x.yaml"}
    assert "done" not in lab.events("x")


@row("M40")
def ended_to_pending(lab: Moves) -> None:
    ended(lab)
    if lab.mode == "down":
        lab.engine._news.clear()
    with lab.by_hand():
        lab.move("running/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x").count("claimed") == 2
    assert lab.events("x").count("done") == 1


@row("M41")
def ended_deleted(lab: Moves) -> None:
    ended(lab)
    if lab.mode == "down":
        lab.engine._news.clear()
    with lab.by_hand():
        lab.path("running/x.yaml").unlink()
    lab.to_the_end()
    assert not lab.names()
    assert "done" not in lab.events("x")


# --- decided


def kept(lab: Moves, task_id: str = "x") -> dict[str, bytes]:
    """Give all that is in a task's results."""
    root = lab.archive.directory(task_id)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@row("M42")
def failed_or_cancelled_to_pending(lab: Moves) -> None:
    for state in ("failed", "cancelled"):
        lab.decided(state, f"{state}.yaml")
        with lab.by_hand():
            lab.move(f"{state}/{state}.yaml", f"pending/{state}.yaml")
        lab.to_the_end()
        end = "failed" if state == "failed" else "done"
        assert lab.names() == {f"{end}/{state}.yaml"}
        assert lab.events(state) == ["claimed", state, "claimed", end]
        assert lab.last(state)["attempt"] == 2
        lab.path(f"{end}/{state}.yaml").unlink()


@row("M43")
def failed_changed_to_pending(lab: Moves) -> None:
    lab.decided("failed")
    before = kept(lab)
    with lab.by_hand():
        lab.path("failed/x.yaml").write_text(text("mended"))
        lab.move("failed/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x-2.yaml"}
    assert kept(lab) == before


@row("M44")
def done_to_pending(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.move("done/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x-2.yaml"}
    assert lab.events("x-2") == ["claimed", "done"]
    assert kept(lab) == before


@row("M45")
def refused_to_pending(lab: Moves) -> None:
    for mended in (False, True):
        lab.drop("pending/x.yaml", "rnu: 1\n")
        lab.to_the_end()
        assert lab.names() == {"failed/x.yaml"}
        with lab.by_hand():
            if mended:
                lab.path("failed/x.yaml").write_text(text())
            lab.move("failed/x.yaml", "pending/x.yaml")
        lab.to_the_end()
        assert lab.names() == {"done/x.yaml" if mended else "failed/x.yaml"}
        if not mended:
            lab.path("failed/x.yaml").unlink()
    assert lab.events("x")[-2:] == ["claimed", "done"]
    assert lab.last("x")["attempt"] == 1


@row("M46")
def decided_to_running(lab: Moves) -> None:
    for state in DECIDED:
        name = f"{state}.yaml"
        lab.decided(state, name, state)
        before = kept(lab, state)
        with lab.by_hand():
            lab.move(f"{state}/{name}", f"running/{name}")
        lab.to_the_end()
        assert lab.names() == {f"{state}/{name}"}
        assert kept(lab, state) == before
        lab.path(f"{state}/{name}").unlink()


@row("M47")
def refused_to_running(lab: Moves) -> None:
    lab.drop("pending/x.yaml", "rnu: 1\n")
    lab.to_the_end()
    with lab.by_hand():
        lab.move("failed/x.yaml", "running/x.yaml")
    lab.to_the_end()
    assert lab.places() == {"failed/x.yaml": b"rnu: 1\n"}
    assert set(lab.events("x")) == {"refused"}


@row("M48")
def decided_changed_to_running(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.path("done/x.yaml").unlink()
        lab.drop("running/x.yaml", text("another"))
    lab.to_the_end()
    assert lab.places() == {"done/x-2.yaml": text("another").encode()}
    assert lab.events("x-2") == ["claimed", "done"]
    assert kept(lab) == before


@row("M49")
def decided_to_another_decided(lab: Moves) -> None:
    for state in DECIDED:
        for other in set(DECIDED) - {state}:
            name = f"{state}-{other}.yaml"
            lab.decided(state, name, name)
            with lab.by_hand():
                lab.move(f"{state}/{name}", f"{other}/{name}")
            lab.to_the_end()
            assert lab.names() == {f"{other}/{name}"}
            lab.path(f"{other}/{name}").unlink()


@row("M50")
def done_by_way_of_failed_to_pending(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.move("done/x.yaml", "failed/x.yaml")
    lab.settle()
    with lab.by_hand():
        lab.move("failed/x.yaml", "pending/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x-2.yaml"}
    assert kept(lab) == before


@row("M51")
def decided_deleted(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.path("done/x.yaml").unlink()
    lab.settle()
    assert kept(lab) == before
    lab.drop("pending/x.yaml", text())
    lab.to_the_end()
    assert lab.names() == {"done/x-2.yaml"}
    assert kept(lab) == before


@row("M52")
def decided_copied_to_pending(lab: Moves) -> None:
    for state in DECIDED:
        name = f"{state}.yaml"
        lab.decided(state, name, state)
        before = kept(lab, state)
        with lab.by_hand():
            lab.path(f"pending/{name}").write_bytes(lab.path(f"{state}/{name}").read_bytes())
        lab.to_the_end()
        end = "failed" if state == "failed" else "done"
        assert lab.names() == {f"{state}/{name}", f"{end}/{state}-2.yaml"}
        assert kept(lab, state) == before
        for place in lab.names():
            lab.path(place).unlink()


@row("M53")
def decided_copied_to_running(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.path("running/x.yaml").write_text(text())
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml", "done/x-2.yaml"}
    assert lab.events("x-2") == ["claimed", "done"]
    assert kept(lab) == before


@row("M54")
def decided_edited(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.path("done/x.yaml").write_text(text("edited"))
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert kept(lab) == before


@row("M55")
def decided_renamed(lab: Moves) -> None:
    lab.decided("done")
    before = kept(lab)
    with lab.by_hand():
        lab.move("done/x.yaml", "done/y.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/y.yaml"}
    with lab.by_hand():
        lab.move("done/y.yaml", "pending/y.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/y.yaml"}
    assert lab.events("y") == ["claimed", "done"]
    assert kept(lab) == before


@row("M56")
def cancelled_before_its_first_claim_to_pending(lab: Moves) -> None:
    lab.drop("pending/x.yaml", text())
    lab.move("pending/x.yaml", "cancelled/x.yaml")
    lab.settle()
    with lab.by_hand():
        People(lab.home).retry("x")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
    assert lab.events("x") == ["claimed", "done"]


@row("M57")
def cancelled_by_hand_to_running(lab: Moves) -> None:
    lab.drop("pending/x.yaml", text())
    lab.move("pending/x.yaml", "cancelled/x.yaml")
    lab.settle()
    with lab.by_hand():
        lab.move("cancelled/x.yaml", "running/x.yaml")
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}


# --- what is no task


@row("M58")
def what_is_no_task_in_running(lab: Moves) -> None:
    with lab.by_hand():
        lab.path("running/link.yaml").symlink_to("/etc/hostname")
        lab.path("running/words.yaml").write_text("no task")
    lab.to_the_end()
    assert {s.value for s, _ in lab.spool.where("link")} == {"failed"}
    assert {s.value for s, _ in lab.spool.where("words")} == {"failed"}
    assert lab.path("failed/link.yaml").is_symlink()


@row("M59")
def what_is_no_task_name_anywhere(lab: Moves) -> None:
    with lab.by_hand():
        for state in State:
            lab.path(f"{state.value}/notes.txt").write_text("not for labd")
    lab.to_the_end()
    for state in State:
        assert lab.path(f"{state.value}/notes.txt").read_text() == "not for labd"
    assert not any(lab.archive.root.iterdir())


@row("M60")
def what_is_half_written(lab: Moves) -> None:
    with lab.path("pending/x.yaml").open("w") as file:
        file.write(text()[:20])
        file.flush()
        with lab.by_hand():
            pass
        lab.settle()
        assert lab.names() == {"pending/x.yaml"}
        file.write(text()[20:])
    lab.clock.jump(1)
    lab.to_the_end()
    assert lab.names() == {"done/x.yaml"}
