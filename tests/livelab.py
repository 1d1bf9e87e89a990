"""A lab's home on which a real daemon works, and what tests ask of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from labd.archive import Archive
from labd.spool import Spool
from labd.task import State
from tests.factories import write_settings
from tests.processes import wait_until


class LiveLab:
    """A home with these settings; `spool` and `archive` are read as the daemon writes them."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.spool, self.archive = Spool(root / "spool"), Archive(root / "results")
        write_settings(root, **{"min_free_bytes": 2**20, **settings})
        self.spool.prepare()

    def put(self, name: str, text: str) -> None:
        """Write a task file into pending/."""
        (self.root / "spool" / "pending" / f"{name}.yaml").write_text(text)

    def wait(self, task: str, *states: State, timeout_s: float = 90.0) -> State:
        """Wait until a task is in one of these states; give it."""

        def there() -> State | None:
            return next((s for s in states if self.spool.holds(s, f"{task}.yaml")), None)

        state = wait_until(there, timeout_s, f"{task} in {' or '.join(states)}")
        assert state is not None
        return state

    def told(self, *words: str) -> str:
        """Give what `labd` prints."""
        command = [sys.executable, "-m", "labd.cli", "--home", str(self.root), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
