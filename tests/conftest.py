"""Fixtures for all tests. A `home` is a whole lab in a directory of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from labd.archive import Archive
from labd.sandbox import Sandbox
from labd.settings import Home
from labd.spool import Spool
from tests.boxes import make_sandbox
from tests.factories import write_settings
from tests.processes import DaemonProcess

REPO = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_home_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABD_HOME", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A lab's home with empty directories, and settings that say which gap tests accept."""
    the_home = write_settings(tmp_path)
    Spool(the_home.spool).prepare()
    Archive(the_home.results).prepare()
    return the_home


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """A sandbox as tests have it: with the gaps that they accept."""
    return make_sandbox()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory for one run."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that this process trusts, as if the machine's administrator had added it."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Start real daemons; whatever is left of them at the end of the test is killed, by process id."""
    started: list[DaemonProcess] = []

    def start(where: Path | None = None, *arguments: str) -> DaemonProcess:
        process = DaemonProcess(where or tmp_path, arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill_everything()


LONGEST = (
    "engine", "hostile", "daemon", "kill", "models_daemon", "crash_worker", "models_nodes", "page_browser", "studies", "crash_daemon", "service", "sweep",
    "shipping", "restart", "prompts", "llm_pool", "servers", "render", "cli", "paper", "crash_archive", "plots",
    "researcher", "llm_ollama", "literature", "paper_study", "page", "trials", "evaluation", "campaigns",
)  # fmt: skip
"""Files of tests that take longer than ten seconds, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts Ray first, and what takes long at both ends; see `FromBothEnds`."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}

    def place_of(item: pytest.Item) -> int:
        place = places.get(item.path.name, len(LONGEST))
        return place if item.get_closest_marker("ray") else 2 * len(LONGEST) - place

    items.sort(key=place_of)


class FromBothEnds(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """One process has all tests of a file, and with it what they share. Processes take files from both ends in turn.

    So one has the tests that start Ray, which take all the processor that they get, while the other has those
    that mostly wait; and they meet where files are short.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FromBothEnds:
    """Give the scheduler of `-n`."""
    return FromBothEnds(config, log)
