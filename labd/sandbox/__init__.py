"""Running code that nobody trusts: always in a sandbox, within limits, and dead when it should be.

A run sees the system's programs, labd's Python, its inputs (all read-only) and one directory that it may
write. It has no network unless it is given the host's, no capability, no way to gain one, and no other
process in sight. bubblewrap makes the namespaces; a filter of system calls, resource limits, and a
supervising thread do the rest.

No sandbox, no run: `Sandbox.run` refuses where the host can't keep a promise, and names the remedy.

Memory is held by the kernel: of each process by RLIMIT_DATA, of all together by a control group. Where none can
be made, the whole tree is polled, so that many processes together may pass the limit for a moment before they
are killed; that is a gap named ``cgroup``. Disk and CPU time are polled. GPU devices are passed by what is published.
"""

from labd.sandbox.ahead import Ahead, sweep
from labd.sandbox.box import Sandbox
from labd.sandbox.model import Ending, Gap, Limits, SandboxConfig, SandboxResult

__all__ = [
    "Ahead",
    "Ending",
    "Gap",
    "Limits",
    "Sandbox",
    "SandboxConfig",
    "SandboxResult",
    "sweep",
]
