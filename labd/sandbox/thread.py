"""A thread of its own for work that must not share one. Knows nothing of sandboxes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.5
"""How late a signal may be handled while the main thread waits."""


class OwnThread(Generic[T]):
    """Work that runs in a new thread, which a program that ends doesn't wait for."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._whole, name=name, daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Say whether the work has ended."""
        return self._future.done()

    def error(self) -> BaseException | None:
        """Give what the work ended with, if it has ended and raised."""
        return self._future.exception() if self._future.done() else None

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    def result(self, interrupted: threading.Event) -> T:
        """Give what the work gives, when its thread is gone; what interrupts the caller sets `interrupted`."""
        try:
            # A signal that another thread took, or that came a moment before this one slept, wakes nobody.
            while not wait([self._future], _LOOK_S).done:
                pass
            value = self._future.result()
        except BaseException:
            # A KeyboardInterrupt, say, doesn't reach the other thread by itself.
            interrupted.set()
            self._thread.join()
            raise
        self._thread.join()
        return value

    def _whole(self) -> None:
        try:
            self._future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, as executors do
            self._future.set_exception(error)
