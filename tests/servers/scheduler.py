"""Which models are loaded on an Ollama node, and who may use them: the rules of Ollama's scheduler.

Read in Ollama's `server/sched.go` at commit fb30760 (August 2026). A request for a model that is loaded with
the options wanted skips the queue and waits for a slot, without limit. All others go through one loop, which
loads one model at a time, and while it waits for a model to go idle everything behind it waits. The victim is
an idle one before a busy one, then the one with the shortest keep_alive, then by name. A client that leaves
during the load that it caused ends the load.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from tests.servers.catalogue import Model
from tests.servers.counters import Counters
from tests.servers.web import ClientLeft, Failure, Hangup

BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(frozen=True)
class Rules:
    """A node's settings. `vram_bytes` 0: no limit but `max_loaded`. `num_ctx` is the default."""

    max_loaded: int = 3
    num_parallel: int = 1
    max_queue: int = 512
    keep_alive_s: float = 300.0
    load_s: float = 0.0
    unload_s: float = 0.0
    vram_bytes: int = 0
    num_ctx: int = 4096


@dataclass(frozen=True)
class RunnerOptions:
    """The options that a model is loaded with; a request with others makes it load again."""

    num_ctx: int
    others: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Wish:
    """A model wanted; `keep_alive_s` None leaves that as it is."""

    model: Model
    options: RunnerOptions
    keep_alive_s: float | None
    hangup: Hangup


class Slots:
    """The slots of one runner, handed out first come, first served."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def hold(self, hangup: Hangup) -> Iterator[None]:
        """Hold a slot.

        Raises:
            ClientLeft: while it waited.

        """
        self._take(hangup)
        try:
            yield
        finally:
            self._give_back()

    def _take(self, hangup: Hangup) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        hangup.then(turn.set)
        turn.wait()
        if hangup.is_set():
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise ClientLeft
            self._give_back()
            raise ClientLeft

    def _give_back(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Process(Protocol):
    """What runs a loaded model."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""

    def stop(self) -> object:
        """End it, and wait for that."""

    def kill(self) -> None:
        """End it at once."""


class _State(Enum):
    LOADING = auto()
    READY = auto()
    UNLOADING = auto()


@dataclass(eq=False)
class Runner:
    """One loaded model: its process, its slots, how many use it, and until when it stays."""

    model: Model
    options: RunnerOptions
    keep_alive_s: float
    slots: Slots
    state: _State = _State.LOADING
    users: int = 0
    expires_at_s: float = math.inf
    process: Process | None = None

    @property
    def url(self) -> str:
        """Where its llama.cpp server listens."""
        if self.process is None:
            raise Failure(500, "llama runner is not running")
        return self.process.url

    @property
    def left_s(self) -> float:
        """How long it stays if nobody asks for it."""
        idle = not self.users
        return self.expires_at_s - time.monotonic() if idle else self.keep_alive_s

    def serves(self, wish: Wish) -> bool:
        """Whether it is up and loaded as wanted."""
        up = self.state is _State.READY and self.process is not None and self.process.alive
        return up and self.options == wish.options


@dataclass(eq=False)
class _Ticket:
    wish: Wish
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Runner | Failure | None = None

    def settle(self, outcome: Runner | Failure) -> None:
        self.outcome = outcome
        self.done.set()


class Scheduler:
    """Loads and unloads; two threads of its own, one that loads and one that unloads."""

    def __init__(
        self,
        rules: Rules,
        counters: Counters,
        start: Callable[[Model, RunnerOptions], Process],
    ) -> None:
        self.rules, self._counters, self._start = rules, counters, start
        self._changed = threading.Condition()
        self._loaded: dict[str, Runner] = {}
        self._queue: deque[_Ticket] = deque()
        for work in (self._load_loop, self._unload_loop):
            threading.Thread(target=work, daemon=True).start()

    @contextmanager
    def lease(self, wish: Wish) -> Iterator[Runner]:
        """Give the model's runner, loaded if need be, and keep it from being unloaded.

        Raises:
            Failure: 503, the queue is full; 500, it does not load; 499, the client left.

        """
        runner = self._acquire(wish)
        try:
            yield runner
        finally:
            with self._changed:
                runner.users -= 1
                if not runner.users:
                    runner.expires_at_s = time.monotonic() + runner.keep_alive_s
                self._changed.notify_all()

    def _acquire(self, wish: Wish) -> Runner:
        with self._changed:
            if runner := self._loaded.get(wish.model.name):
                self._wait_settled(runner)
                if self._use(runner, wish):
                    return runner
            if len(self._queue) >= self.rules.max_queue:
                self._counters.count(wish.model.name, "refused")
                raise Failure(503, BUSY)
            ticket = _Ticket(wish)
            self._queue.append(ticket)
            self._changed.notify_all()
        ticket.done.wait()
        if isinstance(ticket.outcome, Runner):
            return ticket.outcome
        raise ticket.outcome or Failure(500, "the scheduler lost a request")

    def _wait_settled(self, runner: Runner) -> None:
        self._changed.wait_for(lambda: runner.state is not _State.LOADING)

    def _use(self, runner: Runner, wish: Wish) -> bool:
        if self._loaded.get(wish.model.name) is not runner or not runner.serves(wish):
            return False
        runner.users += 1
        # This takes a mark "unload when idle" away, too: so a busy model can keep another one waiting.
        if wish.keep_alive_s is not None:
            runner.keep_alive_s = wish.keep_alive_s
        return True

    def _load_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                ticket = self._queue.popleft()
            try:
                ticket.settle(self._provide(ticket.wish))
            except Failure as failure:
                ticket.settle(failure)

    def _provide(self, wish: Wish) -> Runner:
        while True:
            if wish.hangup.is_set():
                raise Failure(499, "client closed request")
            with self._changed:
                runner = self._loaded.get(wish.model.name)
                if runner is not None and self._use(runner, wish):
                    return runner
                victim = runner or self._victim(wish.model)
                if victim is None:
                    runner = self._loaded[wish.model.name] = self._new(wish)
                    break
                self._expire(victim)
                name = victim.model.name
                while self._loaded.get(name) is victim:
                    self._changed.wait()
        return self._load(runner, wish)

    def _victim(self, model: Model) -> Runner | None:
        loaded = list(self._loaded.values())
        total_bytes = sum(self.size_vram(runner.model) for runner in loaded) + self.size_vram(
            model
        )
        full = self.rules.vram_bytes and total_bytes > self.rules.vram_bytes
        if not loaded or (len(loaded) < self.rules.max_loaded and not full):
            return None
        return min(loaded, key=lambda r: (r.users > 0, r.keep_alive_s, r.model.name))

    def size_vram(self, model: Model) -> int:
        """Give how many bytes of GPU memory the model takes; the rest of it is on the CPU."""
        return min(model.vram_bytes, self.rules.vram_bytes or model.vram_bytes)

    def _new(self, wish: Wish) -> Runner:
        given_s = wish.keep_alive_s
        return Runner(
            model=wish.model,
            options=wish.options,
            keep_alive_s=self.rules.keep_alive_s if given_s is None else given_s,
            slots=Slots(self.rules.num_parallel),
        )

    def _load(self, runner: Runner, wish: Wish) -> Runner:
        name = wish.model.name
        try:
            with self._counters.loading(name):
                runner.process = self._started(wish)
        except (Failure, RuntimeError) as error:
            with self._changed:
                runner.state = _State.UNLOADING
                del self._loaded[name]
                self._changed.notify_all()
            if isinstance(error, Failure):
                raise
            self._counters.count(name, "failed_loads")
            raise Failure(500, f"llama-server process has terminated: {error}") from error
        with self._changed:
            runner.state, runner.users = _State.READY, 1
            self._changed.notify_all()
        return runner

    def _started(self, wish: Wish) -> Process:
        if wish.hangup.wait(self.rules.load_s):
            self._counters.count(wish.model.name, "aborted_loads")
            raise Failure(499, "client closed request")
        return self._start(wish.model, wish.options)

    def expire(self, model: Model) -> None:
        """Have the model unloaded as soon as nobody uses it; come back at once."""
        with self._changed:
            if runner := self._loaded.get(model.name):
                self._expire(runner)

    def _expire(self, runner: Runner) -> None:
        runner.keep_alive_s = 0.0
        if not runner.users:
            runner.expires_at_s = time.monotonic()
        self._changed.notify_all()

    def _unload_loop(self) -> None:
        while True:
            with self._changed:
                while (runner := self._due()) is None:
                    self._changed.wait(self._next_due_s())
                runner.state = _State.UNLOADING
            time.sleep(self.rules.unload_s)
            if runner.process is not None:
                runner.process.stop()
            self._counters.count(runner.model.name, "unloads")
            with self._changed:
                del self._loaded[runner.model.name]
                self._changed.notify_all()

    def _idle(self) -> list[Runner]:
        ready = (runner for runner in self._loaded.values() if runner.state is _State.READY)
        return [runner for runner in ready if not runner.users]

    def _due(self) -> Runner | None:
        return next((runner for runner in self._idle() if runner.left_s <= 0), None)

    def _next_due_s(self) -> float | None:
        soonest_s = min((runner.left_s for runner in self._idle()), default=math.inf)
        return None if math.isinf(soonest_s) else max(soonest_s, 0.0)

    def loaded(self) -> list[Runner]:
        """Give the loaded models, once none of them is loading any more."""
        with self._changed:
            runners = list(self._loaded.values())
            for runner in runners:
                self._wait_settled(runner)
            return [r for r in runners if self._loaded.get(r.model.name) is r]

    def pids(self) -> dict[str, int]:
        """Give the process ids of the loaded models' llama.cpp servers."""
        with self._changed:
            return {n: r.process.pid for n, r in self._loaded.items() if r.process is not None}

    def close(self) -> None:
        """Stop the processes of all models."""
        with self._changed:
            for runner in self._loaded.values():
                if runner.process is not None:
                    runner.process.kill()
