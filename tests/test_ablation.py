"""Which changes are taken away alone, and how much time is kept for what confirms."""

from pathlib import Path

from labd.journal import Journal
from labd.research.ablation import pieces
from labd.research.bench import Bench
from labd.research.experiment import Tools
from labd.research.trials import seconds_needed
from labd.template import load_template
from tests.boxes import make_sandbox
from tests.studylab import make_guessing

GAP = "\n".join(f"x{number} = {number + 1}" for number in range(12))
OLD = f"a = 1\n{GAP}\nb = 1\n{GAP}\nc = 1\n"


def pieces_of(tmp_path: Path, new: str, *, old: str = OLD) -> tuple[list[str], str]:
    make_guessing(tmp_path)
    template = load_template("guessing", roots=[tmp_path])
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        Bench(template, Tools(make_sandbox()), journal, tmp_path, parallel=1) as bench,
    ):
        found = pieces(bench, journal, {"model.py": old}, {"model.py": new})
        again = pieces(bench, journal, {"model.py": old}, {"model.py": new})
    assert again == found
    return ["".join(piece.new) for piece in found.kept], found.note


def test_each_change_that_does_something_is_taken_away(tmp_path: Path) -> None:
    new = OLD.replace("a = 1", "a = 2").replace("c = 1", "c = 2")
    assert pieces_of(tmp_path, new) == (["a = 2\n", "c = 2\n"], "")


def test_a_change_that_does_nothing_is_left_and_that_is_said(tmp_path: Path) -> None:
    new = OLD.replace("a = 1", "a = 1  # one").replace("b = 1", "b = 2").replace("c = 1", "c = 2")
    kept, note = pieces_of(tmp_path, new)
    assert kept == ["b = 2\n", "c = 2\n"]
    assert note.startswith("1 of the 3 pieces")


def test_too_many_changes_are_said_to_be_too_many(tmp_path: Path) -> None:
    old = "".join(f"y{number} = 0\n{GAP}\n" for number in range(8))
    kept, note = pieces_of(tmp_path, old.replace("= 0\n", "= 9\n"), old=old)
    assert (kept, note[:34]) == ([], "The selected change has 8 pieces, ")


def test_the_time_for_runs_to_come_is_that_of_their_rounds_with_some_to_spare() -> None:
    assert seconds_needed([1.0, 9.0, 2.0], [4, 20], 2) == 1.25 * 2.0 * (2 + 10)
