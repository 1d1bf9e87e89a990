"""Research by language models: does every task end with a true paper, whatever answers; and what labd itself takes.

The models are a real llama.cpp server with random weights, and a scripted one that behaves badly in a different way for each model.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from labd.clock import from_iso
from labd.task import State
from tests.processes import DaemonProcess
from tests.servers.fixtures import running_ollama, running_scripted
from tests.studylab import StudyLab, audit

BEHAVIOURS = (
    *("garbage", "empty", "blank", "echo", "half-json", "endless-line", "endless", "refusal"),
    *("bad-request", "lies", "malicious", "hanging-code", "dies"),
)
_RUN_S = 600.0


def main(*, small: bool = False) -> bool:
    """Measure, and print tables; give whether every task ended with a true paper."""
    print("\n## Research by language models: `research`\n")
    good = _random_weights(2 if small else 20)
    return _behaviours(BEHAVIOURS[:2] if small else BEHAVIOURS) and good


def _random_weights(count: int) -> bool:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha", "--num-parallel=2"))
        lab = _lab(stack, node.url)
        names = [f"random-{number:02d}" for number in range(count)]
        for number, name in enumerate(names):
            lab.drop(name, "alpha", seed=number)
        ends = lab.wait_all(names, 120 + 60 * count)
        faults = _faults(lab, ends)
        own = [_own_s(lab.archive.directory(name)) for name in names if not faults.get(name)]
    print(f"- random weights: {len(names) - len(faults)} of {count} tasks ended with a true paper")
    for name, found in faults.items():
        print(f"  - {name}: {'; '.join(found)}")
    if own:
        most, mean = max(own), sum(own) / len(own)
        print(
            f"- labd's own time a task (neither model nor experiment): mean {mean:.1f} s, most {most:.1f} s;"
            f" of a task of {_RUN_S:.0f} s that is {100 * mean / _RUN_S:.1f} % and {100 * most / _RUN_S:.1f} %"
        )
    return not faults


def _behaviours(names: Sequence[str]) -> bool:
    with ExitStack() as stack:
        models = [f"--model={name}" for name in names]
        node = stack.enter_context(
            running_scripted("--behaviour=named", "--max-loaded=50", "--num-parallel=2", *models)
        )
        lab = _lab(stack, node.url)
        for name in names:
            lab.drop(name, name)
        faults = _faults(lab, lab.wait_all(names, 120 + 60 * len(names)))
    print("\n| a model that answers | ends |\n|:--|:--|")
    for name in names:
        print(f"| {name} | {'; '.join(faults.get(name, [])) or 'done, with a true paper'} |")
    return not faults


def _lab(stack: ExitStack, url: str) -> StudyLab:
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labd-bench-")))
    lab = StudyLab(root, url)
    daemon = DaemonProcess(root)
    stack.callback(daemon.kill_everything)
    return lab


def _faults(lab: StudyLab, ends: dict[str, State]) -> dict[str, list[str]]:
    found = {
        name: audit(lab.archive.directory(name)) if state is State.DONE else [state.value]
        for name, state in ends.items()
    }
    return {name: faults for name, faults in found.items() if faults}


def _own_s(results: Path) -> float:
    """Give the seconds of an attempt in which neither a model was asked nor an experiment ran."""
    result = json.loads((results / "result.json").read_text())
    begun, ended = (from_iso(result[key]).timestamp() for key in ("started_at", "finished_at"))
    busy_s, until = 0.0, begun
    for start, end in sorted(_intervals(results / "journal.jsonl")):
        busy_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return ended - begun - busy_s


def _intervals(journal: Path) -> Iterator[tuple[float, float]]:
    for line in journal.read_text().splitlines():
        step = json.loads(line)
        if step["key"].startswith(("run/", "ask/")):
            end = from_iso(step["at"]).timestamp()
            yield end - step["wall_s"], end
