"""Which waiting task starts where, and why each of the others waits. Pure: no clock, no files, no log.

Order is priority, then fair share between owners, then age. Tasks of one priority, owner and demand form a
class, and only the oldest of a class can be next, so a plan looks at the heads of classes and not at 100,000
tasks. A task that does not fit now does not hold up smaller ones behind it, until a node is kept free for it.

**Fair share.** Inside a priority the next start is of the owner with the least sum of two shares: the dominant
share of what its tasks hold now, and the decayed mean of the same share in the past (`decayed`). Both are parts
of the whole cluster, so that they may be added: the first counts at once what a plan gives out, and the second
lets two owners take turns on one slot, where neither holds anything when it comes free.
Source: Ghodsi et al., "Dominant Resource Fairness", NSDI 2011, section 4 (shares of the present only).

**Big requests.** When a size (one demand at one priority) has waited too long, smaller ones are waiting too, and
it fits nowhere, a node is kept free for its first task by fair share: others of the same or a lower priority
start there only while, after them, what it needs is still there. So it fits at the latest when all that ran
there at that moment has ended. The node is the one with the least to wait for: fewest GPUs short, then fewest
CPUs, then fewest tasks. The daemon hands `Plan.reserved` to the next snapshot, and then the task comes before fair
share as soon as it fits: a node is not emptied in vain.

**Several nodes.** Some tasks can use as much again on other nodes. When all is filled, a task that starts is given there
what nobody who waits could use at that moment, and nothing of a node that is kept free. So it never waits for that, and
its start delays nobody's. Which devices it has there nobody can tell: its runs come and go.

**Devices.** Ray puts a fraction of a GPU on the fullest device that can hold it, never on two, and gives whole GPUs
only from wholly free devices (measured with 2.60: 0.25 six times: four on device 0, two on device 1; 0.6 three times:
0, 1, 2). `Start.gpus` foretells Ray's choice; a running task that says no devices is taken to have the emptiest to itself,
because what is then left is surely free, wherever it is.
"""

from labd.scheduler.gates import gate, retry_delay_s
from labd.scheduler.model import (
    Backlog,
    Barred,
    Demand,
    Node,
    Running,
    Snapshot,
    Start,
    Waiting,
    WaitingClass,
)
from labd.scheduler.planner import Planner
from labd.scheduler.reasons import Plan
from labd.scheduler.shares import decayed
from labd.scheduler.stuck import (
    Recovery,
    Signs,
    Standing,
    Verdict,
    evidence,
    judge,
    next_recovery,
    seen,
    told_to_end,
)

__all__ = [
    "Backlog",
    "Barred",
    "Demand",
    "Node",
    "Plan",
    "Recovery",
    "Running",
    "Signs",
    "Snapshot",
    "Standing",
    "Start",
    "Verdict",
    "Waiting",
    "WaitingClass",
    "decayed",
    "evidence",
    "gate",
    "judge",
    "next_recovery",
    "plan",
    "retry_delay_s",
    "seen",
    "told_to_end",
]


def plan(snapshot: Snapshot, *, max_starts: int = 1000) -> Plan:
    """Decide what starts where, at most `max_starts` tasks. Every waiting task is started or has a reason."""
    planner = Planner(snapshot, max_starts)
    if snapshot.nodes and not snapshot.hold:
        planner.run()
    return Plan(planner)
