"""A thread of its own for a run, and what interrupts the one that waits for it."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from labd.sandbox.thread import OwnThread


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the tests themselves."""


@pytest.fixture
def interrupting() -> Iterator[signal.Signals]:
    def handle(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handle)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_another_thread_took_interrupts_the_run(
    interrupting: signal.Signals,
) -> None:
    interrupted, asked, heard = threading.Event(), threading.Event(), []

    def work() -> None:
        asked.wait(20)
        time.sleep(0.2)  # for the other to be asleep; it is right in any case
        # The kernel may hand a process's signal to any of its threads: here to this one.
        signal.pthread_kill(threading.get_ident(), interrupting)
        heard.append(interrupted.wait(20))

    run = OwnThread(work, "run")

    def wait_for_it() -> None:
        asked.set()
        run.result(interrupted)

    with pytest.raises(Interrupted):
        wait_for_it()
    assert heard == [True]
