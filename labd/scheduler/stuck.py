"""When work is stuck and what is done about it: pure rules over what was seen of an attempt, look by look.

Only differences count: of counters between two looks, and of the machine's monotonic time between them. A look that did
not come is no evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from labd.clock import print_duration

Recovery = Literal["end_run", "retry", "fail"]
"""End the runs under way, whose study goes on; end the attempt for another one; give the task up."""

WORK_SHARE = 0.01
"""Of one CPU, over the time between two looks: less, for what the worker has started, is waiting and not working."""
OWN_SHARE = 0.05
"""The same for the worker itself, which talks to the lab all the time: 0.01 to 0.02 of a CPU while its run sleeps (Ray 2.60, measured)."""
OWN_SHARE_PER_RUN = 0.1
"""More of that for each run under way: measuring it may take a tenth of the time (see `labd.sandbox.supervise`)."""
GPU_SHARE = 0.01
READ_BYTES_PER_S = 16 * 1024
"""Less, for what the worker has started, is waiting and not reading: a shell that sleeps half a second in a loop reads 8 KiB/s (measured)."""
MAX_REACTION_S = 60.0
"""After so long, or its limit where that is shorter, a worker that was told to end its runs and moves nothing is stuck itself."""
MAX_APART_S = 60.0
"""So much of the time between two looks counts, or half of the limit where that is shorter: what a GPU did in a longer one, nobody saw."""
BASELINE = "baseline"
"""How the names of runs begin without which there is no study."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What one look saw of an attempt: counters, and what is under way.

    Attributes:
        at_s: when, by the monotonic clock of the machine that was looked at.
        beats: counted by its worker each second or so; None where no worker says that it has the attempt: it has not begun, or
            can't say anything.
        work_cpu_s, own_cpu_s: CPU time of the processes that the worker started, and of the worker.
        written_bytes: what those processes that live have written, to files and pipes.
        read_bytes: the same, read.
        shipped_bytes: what has travelled between this node and the lab's own for it, or was read for that.
        gpu_use: of the busiest of its GPUs, 0 to 1; None where nobody says.
        asks: requests to language models, and for GPUs that these fill, that are under way or wait for their turn.
        runs: names of the runs of an experiment that are under way.

    """

    at_s: float
    beats: int | None = None
    journal_bytes: int = 0
    log_bytes: int = 0
    output_bytes: int = 0
    work_cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    written_bytes: int = 0
    read_bytes: int = 0
    shipped_bytes: int = 0
    gpu_use: float | None = None
    asks: int = 0
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """How an attempt has stood since its beginning. Times are of the daemon's monotonic clock.

    Attributes:
        limit_s: for how long nothing may move; 0: for ever.
        moved_s: when something last moved, or it was first looked at; later by all the time that nobody watched it.
        what: what that was.
        looked_s: when it was last looked at.
        signs: what that look saw.
        alive: whether its worker said something between the last two looks.
        ended_runs: how often its runs were told to end.
        asked_s: when that was last, if nothing has moved since.

    """

    limit_s: float
    moved_s: float
    what: str = "its start"
    looked_s: float = 0.0
    signs: Signs | None = None
    alive: bool = False
    ended_runs: int = 0
    asked_s: float | None = None

    @property
    def idle_s(self) -> float:
        """For how long, of the time that it was watched, nothing had moved when it was last looked at."""
        return max(0.0, self.looked_s - self.moved_s)

    @property
    def due_s(self) -> float:
        """When something will be done about it, if nothing moves until then."""
        if not self.limit_s:
            return float("inf")
        if self.asked_s is not None:
            return self.asked_s + min(MAX_REACTION_S, self.limit_s)
        return self.moved_s + self.limit_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is done about an attempt, and the evidence in words, a fact each."""

    recovery: Recovery
    evidence: tuple[str, ...]


def seen(standing: Standing, signs: Signs, now_s: float) -> Standing:
    """Give how an attempt stands after a look. One that was taken before the last one's time says nothing new.

    A look that no worker answered to is none: nobody knows whether anything moved.
    """
    before = standing.signs
    if signs.beats is None:
        return replace(standing, alive=False)
    if before is None:  # there is nothing yet that could differ
        return replace(standing, signs=signs, looked_s=now_s, moved_s=now_s, alive=True)
    if signs.at_s == before.at_s:
        return standing
    after = replace(standing, signs=signs, looked_s=now_s, alive=_beats(before, signs))
    if what := moved(before, signs):
        return replace(after, moved_s=now_s, what=what, asked_s=None)
    still_s = _watched_s(standing, signs.at_s - before.at_s)
    asked_s = None if standing.asked_s is None else _asked_s(standing, still_s, now_s)
    return replace(after, moved_s=now_s - standing.idle_s - still_s, asked_s=asked_s)


def moved(before: Signs, after: Signs) -> str:
    """Name what moved between two looks; empty where nothing did."""
    elapsed_s = max(0.0, after.at_s - before.at_s)
    own_share = OWN_SHARE + OWN_SHARE_PER_RUN * len(after.runs)
    signs = {
        "a journal line": after.journal_bytes != before.journal_bytes,
        "a log line": after.log_bytes != before.log_bytes,
        "output": after.output_bytes != before.output_bytes,
        "CPU time": _used(before.work_cpu_s, after.work_cpu_s, WORK_SHARE * elapsed_s)
        or _used(before.own_cpu_s, after.own_cpu_s, own_share * elapsed_s),
        # A slow download takes hardly any CPU time.
        "a byte written": after.written_bytes > before.written_bytes,
        # Who waits looks now and then whether there is something; who reads from a slow disk gets more than that.
        "reading": _used(before.read_bytes, after.read_bytes, READ_BYTES_PER_S * elapsed_s),
        "a byte shipped": after.shipped_bytes != before.shipped_bytes,
        "GPU use": (after.gpu_use or 0.0) > GPU_SHARE,
        # A server that is silent, or a queue, has a patience of its own; but a worker that is silent waits for nothing.
        "waiting for a language model": after.asks > 0 and _beats(before, after),
    }
    return next((what for what, there in signs.items() if there), "")


def told_to_end(standing: Standing, now_s: float) -> Standing:
    """Give how an attempt stands whose runs were told to end now."""
    return replace(standing, ended_runs=standing.ended_runs + 1, asked_s=now_s)


def judge(standing: Standing, *, losses: int, max_retries: int) -> Verdict | None:
    """Say what is to be done about an attempt as it was last looked at; nothing, as long as it is not stuck.

    Args:
        standing: how it stands.
        losses: how often the task was lost since somebody asked for it.
        max_retries: how often it may be.

    """
    if standing.signs is None or standing.looked_s < standing.due_s:
        return None
    return Verdict(
        next_recovery(standing, losses=losses, max_retries=max_retries), evidence(standing)
    )


def next_recovery(standing: Standing, *, losses: int, max_retries: int) -> Recovery:
    """Give what would be done if it were found stuck now."""
    if _may_end_runs(standing):
        return "end_run"
    return "retry" if losses < max_retries else "fail"


def evidence(standing: Standing) -> tuple[str, ...]:
    """Give what was seen, a fact each: since when nothing moves, where the counters stand, what is under way."""
    limit = print_duration(standing.limit_s) if standing.limit_s else "none"
    facts = [
        f"nothing has moved for {print_duration(standing.idle_s)} (its limit: {limit})",
        f"the last that moved was {standing.what}",
    ]
    signs = standing.signs
    if signs is None:
        return (*facts, "no worker has said yet that it has it")
    if standing.asked_s is not None:
        waited = print_duration(max(0.0, standing.looked_s - standing.asked_s))
        facts.append(f"its runs were told to end {waited} ago, and nothing came of it")
    facts.append(
        f"journal {signs.journal_bytes} bytes, log {signs.log_bytes} bytes, output {signs.output_bytes} bytes, "
        f"CPU {signs.work_cpu_s + signs.own_cpu_s:.1f} s in all, {_of_gpus(signs.gpu_use)}"
    )
    if signs.runs:
        facts.append(f"under way: {_listed(signs.runs)}")
    if not standing.alive:
        facts.append("its worker says nothing")
    return tuple(facts)


def _may_end_runs(standing: Standing) -> bool:
    """Say whether to end its runs may help: once for an attempt, by a worker that hears, and not the baseline."""
    signs = standing.signs
    if signs is None or not standing.alive or standing.ended_runs:
        return False
    return bool(signs.runs) and not any(name.startswith(BASELINE) for name in signs.runs)


def _watched_s(standing: Standing, apart_s: float) -> float:
    """Give how much of the time between two looks, by the machine's own clock, stands for no movement.

    That clock stops where the machine sleeps. Of a long time without a look only what comes after a usual one counts.
    """
    most_s = min(MAX_APART_S, standing.limit_s / 2) if standing.limit_s else MAX_APART_S
    return min(max(0.0, apart_s), most_s)


def _asked_s(standing: Standing, still_s: float, now_s: float) -> float:
    """Give since when, of the time that was watched, its runs have been told to end."""
    asked_s = now_s if standing.asked_s is None else standing.asked_s
    before_s = max(0.0, standing.looked_s - asked_s)
    return now_s - before_s - min(still_s, max(0.0, now_s - max(asked_s, standing.looked_s)))


def _used(before_s: float, after_s: float, least_s: float) -> bool:
    return after_s > before_s and after_s - before_s >= least_s


def _beats(before: Signs, after: Signs) -> bool:
    return after.beats is not None and after.beats != before.beats


def _of_gpus(use: float | None) -> str:
    return "no GPU" if use is None else f"GPU use {100 * use:.0f} %"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
