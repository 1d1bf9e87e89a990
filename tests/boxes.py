"""Sandboxes for tests, and the gap that they accept. Needs nothing but labd's sandbox, so that any Python can have it."""

from typing import Any

from labd.sandbox import Sandbox, SandboxConfig

ACCEPTED_GAPS = frozenset({"cgroup"})
"""What the host of a test need not keep; every other gap is a failure.

An ordinary user's shell has no control group of its own, and `make test` has to run there. Where groups can be
made they are made all the same, also by tests that accept this; `tests/test_sandbox_groups.py` is about them.
"""


def make_sandbox(**over: Any) -> Sandbox:
    """Give a sandbox as tests have it; `over` changes its `SandboxConfig`."""
    return Sandbox(SandboxConfig(**{"allow_missing": ACCEPTED_GAPS, **over}))
