"""Asks prompts, many at a time: as many as have a slot, and a few that wait for one."""

import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from labd.prompts.policy import Ticket

MAX_THREADS = 256
FIRST_THREADS = 2
_MAX_WAITING, _LONG_S = 2, 1.0
_TURN_S = 0.2

Ask = Callable[[Ticket, Callable[[], None]], float | None]
"""Asks one prompt, and calls the second argument when it has got a slot. Gives how long to wait before it is
asked again, or ``None`` if it is done with."""


class Crew:
    """Threads that take prompts one after another until there are none.

    One more thread starts whenever none of them waits for a slot; one stops where several have waited for long.

    Args:
        tickets: the prompts, in the order in which they are asked; taken one at a time.
        ask: asks one; what it raises ends the crew and comes out of `run`.
        on_stop: is called when no more is to be asked, to hasten what is being asked.

    """

    def __init__(self, tickets: Iterator[Ticket], ask: Ask, on_stop: Callable[[], None]) -> None:
        self._tickets = tickets
        self._ask = ask
        self._on_stop = on_stop
        self._changed = threading.Condition()
        self._later: list[tuple[float, int, Ticket]] = []
        self._put_back = 0
        self._exhausted = False
        self._stopped = False
        self._threads = 0
        # Since when each prompt waits for a slot that waits for one; the longest wait is the first.
        self._waiting: dict[int, float] = {}
        self._asking = 0

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return self._threads

    def stop(self) -> None:
        """Ask no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._on_stop()

    def run(self, turn: Callable[[], None]) -> None:
        """Ask all prompts; come back when all are done with, or after `stop`.

        `turn` is called a few times a second by the calling thread.
        """
        with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="prompts") as executor:
            futures: set[Future[None]] = set()
            try:
                while self._turn(executor, futures):
                    turn()
            finally:
                self.stop()

    def _turn(self, executor: ThreadPoolExecutor, futures: set[Future[None]]) -> bool:
        """Start what threads are wanted, wait a moment, and say whether to go on."""
        with self._changed:
            wanted = self._wanted()
            self._threads += wanted
            if not wanted and not (self._over() and all(future.done() for future in futures)):
                self._changed.wait(_TURN_S)
        for _ in range(wanted):
            future = executor.submit(self._work)
            future.add_done_callback(self._noted)
            futures.add(future)
        for future in [future for future in futures if future.done()]:
            futures.discard(future)
            future.result()
        with self._changed:
            return bool(futures) or not self._over()

    def _noted(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wanted(self) -> int:
        if self._over() or self._threads >= MAX_THREADS:
            return 0
        if self._threads == 0:
            return FIRST_THREADS
        idle = self._threads - self._asking
        return 1 if not self._waiting and idle == 0 and self._has_ready() else 0

    def _has_ready(self) -> bool:
        return not self._exhausted or bool(self._later and self._later[0][0] <= time.monotonic())

    def _over(self) -> bool:
        return self._stopped or (self._exhausted and not self._later and not self._asking)

    def _work(self) -> None:
        """Take prompts and ask them, until there are none or too many threads wait."""
        try:
            while (ticket := self._take()) is not None:
                delay_s: float | None = None
                try:
                    delay_s = self._ask(ticket, functools.partial(self._begun, ticket))
                finally:
                    self._ended(ticket, delay_s)
        finally:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _take(self) -> Ticket | None:
        with self._changed:
            while not (self._over() or self._too_many_wait()):
                ticket = self._next()
                if ticket is not None:
                    self._waiting[ticket.index] = time.monotonic()
                    self._asking += 1
                    return ticket
                self._changed.wait(self._pause_s())
            return None

    def _next(self) -> Ticket | None:
        # New ones first: one that was put back goes to the end, but not beyond its time.
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[2]
        if not self._exhausted:
            ticket = next(self._tickets, None)
            if ticket is not None:
                return ticket
            self._exhausted = True
            self._changed.notify_all()
        return None

    def _pause_s(self) -> float:
        if not self._later:
            return _TURN_S
        return min(_TURN_S, max(0.001, self._later[0][0] - time.monotonic()))

    def _too_many_wait(self) -> bool:
        # One that has just ended a request gets the slot of that in a moment, so only long waits count.
        long_ago_s = time.monotonic() - _LONG_S
        longest = itertools.islice(self._waiting.values(), _MAX_WAITING)
        return sum(since_s < long_ago_s for since_s in longest) >= _MAX_WAITING

    def _begun(self, ticket: Ticket) -> None:
        with self._changed:
            if self._waiting.pop(ticket.index, None) is not None and not self._waiting:
                self._changed.notify_all()

    def _ended(self, ticket: Ticket, delay_s: float | None) -> None:
        with self._changed:
            self._asking -= 1
            self._waiting.pop(ticket.index, None)
            if delay_s is not None:
                self._put_back += 1
                heapq.heappush(self._later, (time.monotonic() + delay_s, self._put_back, ticket))
            self._changed.notify_all()
