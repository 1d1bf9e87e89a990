"""A lab without machines: jobs arrive and end on a clock that jumps from event to event, and the real plan decides.

`RayNode` gives out resources as Ray does, and knows nothing of the scheduler: what Ray would let wait is an error here.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from labd.scheduler import Backlog, Demand, Node, Plan, Running, Snapshot, Waiting, decayed, plan


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """A task to come: when it arrives, how long it runs, what it needs, and whose it is."""

    arrives_s: float
    key: str
    length_s: float = 60.0
    demand: Demand = field(default=Demand(1, 1), compare=False)
    owner: str = "ann"
    priority: int = 0
    num_nodes: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a job: where it ran, and when."""

    job: Job
    node_id: str
    start_s: float
    end_s: float
    also: tuple[str, ...] = ()

    @property
    def waited_s(self) -> float:
        return self.start_s - self.job.arrives_s


class WouldWait(AssertionError):
    """Ray would have put the task into its own queue: the plan started more than fits."""


class RayNode:
    """What a node has left: a fraction goes to the fullest device that holds it, whole GPUs to wholly free ones."""

    def __init__(self, node: Node) -> None:
        self.cpus = node.num_cpus
        self.devices = [1.0] * int(node.num_gpus)

    def would_take(self, demand: Demand) -> tuple[int, ...] | None:
        """Give the devices that the demand would get now, or None where it would wait."""
        if self.cpus < demand.num_cpus - 1e-6:
            return None
        if demand.num_gpus == 0:
            return ()
        if demand.num_gpus < 1:
            fits = [i for i, left in enumerate(self.devices) if left >= demand.num_gpus - 1e-6]
            return (min(fits, key=lambda i: self.devices[i]),) if fits else None
        empty = [i for i, left in enumerate(self.devices) if left >= 1 - 1e-6]
        number = int(demand.num_gpus)
        return tuple(empty[:number]) if len(empty) >= number else None

    def take(self, demand: Demand) -> tuple[int, ...]:
        """Give out; the devices come back.

        Raises:
            WouldWait: it does not fit.

        """
        devices = self.would_take(demand)
        if devices is None:
            msg = f"{demand} on {self.cpus:g} CPUs and {self.devices}"
            raise WouldWait(msg)
        self._change(demand, devices, -1)
        return devices

    def give_back(self, demand: Demand, devices: Iterable[int]) -> None:
        """Take back what `take` gave out."""
        self._change(demand, devices, 1)

    def _change(self, demand: Demand, devices: Iterable[int], sign: int) -> None:
        self.cpus += sign * demand.num_cpus
        for device in devices:
            self.devices[device] += sign * min(1.0, demand.num_gpus)


class Simulation:
    """Plays jobs through the plan. `runs` grows as jobs start; `usage` is the owners' past use.

    With `tell_gpus` false the plan is not told which devices running tasks have.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        reserve_after_s: float = 600.0,
        half_life_s: float = 3600.0,
        tell_gpus: bool = True,
    ) -> None:
        self.nodes, self.ray = nodes, {node.id: RayNode(node) for node in nodes}
        self.reserve_after_s, self.half_life_s = reserve_after_s, half_life_s
        self.tell_gpus = tell_gpus
        self.backlog = Backlog()
        self.now_s = 0.0
        self.usage: dict[str, float] = {}
        self.runs: list[Run] = []
        self.kept_at_s: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, list[tuple[Running, tuple[int, ...]]]] = {}
        self._ends: list[tuple[float, str]] = []
        self._last: Plan | None = None

    def play(self, jobs: Iterable[Job]) -> list[Run]:
        """Play until nothing more can happen; give the runs in the order of their starts."""
        arrivals = sorted(jobs)
        self._jobs |= {job.key: job for job in arrivals}
        arrivals.reverse()
        while arrivals or self._ends:
            times = [self._ends[0][0]] if self._ends else []
            self._go_to(min([*times, *([arrivals[-1].arrives_s] if arrivals else [])]))
            while self._ends and self._ends[0][0] <= self.now_s:
                self._end(heapq.heappop(self._ends)[1])
            while arrivals and arrivals[-1].arrives_s <= self.now_s:
                self._arrive(arrivals.pop())
            self._start()
        return self.runs

    def running(self) -> list[Running]:
        """Give what runs, as the daemon would tell the plan."""
        return [task for held in self._running.values() for task, _devices in held]

    def snapshot(self) -> Snapshot:
        """Give what the plan sees now."""
        return Snapshot(
            self.backlog,
            self.running(),
            self.nodes,
            self.usage,
            self.now_s,
            self.reserve_after_s,
            reserved=self._last.reserved if self._last else {},
        )

    def _go_to(self, moment_s: float) -> None:
        elapsed_s = moment_s - self.now_s
        self.usage = decayed(self.usage, self.running(), self.nodes, elapsed_s, self.half_life_s)
        self.now_s = moment_s

    def _arrive(self, job: Job) -> None:
        since_ns = int(job.arrives_s * 1e9)
        self.backlog.add(
            Waiting(
                job.key, job.priority, since_ns, job.demand, job.owner, self.now_s, job.num_nodes
            )
        )

    def _end(self, key: str) -> None:
        for task, devices in self._running.pop(key):
            self.ray[task.node_id].give_back(task.demand, devices)

    def _start(self) -> None:
        self._last = plan(self.snapshot())
        for key in self._last.reserved:
            self.kept_at_s.setdefault(key, self.now_s)
        for start in self._last.starts:
            job = self._jobs[start.key]
            self.backlog.discard(start.key)
            held = [
                (node_id, self.ray[node_id].take(job.demand))
                for node_id in (start.node_id, *start.also)
            ]
            self._running[job.key] = [
                (self._task(job, node_id, devices, told=self.tell_gpus and not number), devices)
                for number, (node_id, devices) in enumerate(held)
            ]
            end_s = self.now_s + job.length_s
            heapq.heappush(self._ends, (end_s, job.key))
            self.runs.append(Run(job, start.node_id, self.now_s, end_s, start.also))

    @staticmethod
    def _task(job: Job, node_id: str, devices: tuple[int, ...], *, told: bool) -> Running:
        return Running(job.key, node_id, job.demand, job.owner, devices if told else None)
