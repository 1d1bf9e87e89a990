"""The sandbox: gaps, and runs."""

import os
import shlex
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from labd.errors import SandboxError, StorageError
from labd.sandbox import gaps as find
from labd.sandbox.ahead import Ahead
from labd.sandbox.cgroup import Base, Plan, find_base
from labd.sandbox.cgroup import sweep as sweep_groups
from labd.sandbox.command import binds_of, environment, options, syscall_filter
from labd.sandbox.held import StartFailed, held
from labd.sandbox.interpreter import WORK, interpreter
from labd.sandbox.launch import Command
from labd.sandbox.meter import Meter
from labd.sandbox.model import Ending, Gap, Limits, Request, SandboxConfig, SandboxResult
from labd.sandbox.output import Output
from labd.sandbox.script import MAX_TEXT_BYTES, rlimits, script
from labd.sandbox.stuck import end_stuck
from labd.sandbox.supervise import Order, Seen, follow
from labd.sandbox.thread import OwnThread
from labd.sandbox.workdir import Usage, hand_over, take_back
from labd.text import printable

_PROBE_LIMITS = Limits(
    wall_s=5, memory_bytes=2**28, processes=16, disk_bytes=2**20, output_bytes=2**16
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Sandbox:
    """Runs untrusted commands. Any thread may use it, several at once; one run per directory at a time."""

    def __init__(self, config: SandboxConfig = SandboxConfig()) -> None:  # noqa: B008 - frozen
        self._config = config
        self._uid = config.uid if os.geteuid() == 0 else None
        self._mutex = threading.Lock()
        self._gaps: list[Gap] | None = None
        self._nested = False
        self._base = Base()

    def gaps(self) -> list[Gap]:
        """Give the promises that can't be kept on this host; none is the normal case. Tried once, then remembered."""
        with self._mutex:
            if self._gaps is None:
                found = find.of_tools(self._config.bwrap)
                missing = {gap.name for gap in found} - {"seccomp"}
                self._gaps = found if missing else found + self._tried()
            return list(self._gaps)

    def end_stuck(self) -> int:
        """End what bubblewraps of this user left behind that were killed with their workers; give how many.

        Control groups of dead processes go as well.
        """
        sweep_groups(self._base)
        return end_stuck(os.geteuid() if self._uid is None else self._uid)

    def run(
        self,
        argv: Sequence[str],
        *,
        workdir: Path,
        read_only: Mapping[str, Path] = _NOTHING,
        env: Mapping[str, str] = _NOTHING,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        gpus: Sequence[int] = (),
        log: Path | None = None,
        cancelled: threading.Event | None = None,
        network: bool = False,
        cwd: str = WORK,
        ahead: Ahead | None = None,
    ) -> SandboxResult:
        """Run a command, and give how it went when every process of it is dead.

        `workdir` is ``/work`` inside, and all that the run can write; afterwards it holds plain
        files, directories, and links that stay inside. `cwd` is the place inside where the command starts; a run
        whose place is not there ends with 127, as one without a command does. `read_only` maps places inside to
        files or directories of the host, which others must be allowed to read where labd is root; one
        below ``/work`` needs a file or directory there to lie over, or leaves an empty one. ``python`` as
        the first word is labd's own interpreter. `env` comes over what the sandbox sets itself.
        `log` gets the output, kept as in the result. Setting `cancelled` kills the run.

        With `network` the run has the host's own network: all that the host reaches, its services on the
        loopback, and its abstract unix sockets, among which may be a display server's, a message bus's or a
        container runtime's. Its own files of names and TLS certificates are shown.

        `ahead` lends the run a sandbox that is started already, if it holds a fitting one; that changes
        nothing but the time it takes, and that `workdir` gets a new inode. With `ahead`, `workdir` is made where
        only its last part is not there.

        Where labd runs as root, `workdir` belongs to the sandbox's uid while the run lasts.

        Raises:
            SandboxError: nothing was run, because the host can't keep a promise or the arguments can't
                be met; or the run's end could not be made sure of.
            StorageError: the log or the working directory could not be written or read.

        """
        self._refuse_gaps(limits)
        asked = Request(
            tuple(argv), workdir, dict(read_only), dict(env), limits, tuple(gpus), network, cwd
        )
        if ahead is not None:
            with suppress(FileExistsError, FileNotFoundError):
                workdir.mkdir()
        request = _checked(asked, root=self._uid is not None)
        _refuse_log(log, request.workdir)
        try:
            return self._run(request, log, cancelled or threading.Event(), ahead)
        except StartFailed as error:
            gap = find.of_start(str(error))
            raise SandboxError(gap.what, where=gap.name, fix=gap.fix) from error
        except OSError as error:
            raise StorageError(
                f"a sandboxed run was ended: {error}", where=str(request.workdir)
            ) from error

    def _refuse_gaps(self, limits: Limits) -> None:
        open_gaps = [gap for gap in self.gaps() if gap.name not in self._config.allow_missing]
        if open_gaps:
            raise SandboxError(
                "; ".join(f"{gap.what} ({gap.name})" for gap in open_gaps),
                where="sandbox",
                fix=". ".join(dict.fromkeys(gap.fix for gap in open_gaps)),
            )
        if limits.cpus is None or "cpu" in self._base.controllers:
            return
        if "cpus" not in self._config.allow_missing:
            gap = find.of_cpus(limits.cpus)
            raise SandboxError(gap.what, where=gap.name, fix=gap.fix)

    def recipe(self, request: Request) -> tuple[Command, int | None]:
        """Give how to start a sandbox for a request, and as which user (``None``: as ourselves).

        Raises:
            SandboxError: the host can't keep a promise, or the request can't be met.

        """
        self._refuse_gaps(request.limits)
        return self._command(_checked(request, root=self._uid is not None)), self._uid

    def _run(
        self,
        request: Request,
        log: Path | None,
        cancelled: threading.Event,
        ahead: Ahead | None = None,
    ) -> SandboxResult:
        ours = request.argv[:1] == ("python",)
        words = (interpreter().executable, *request.argv[1:]) if ours else request.argv
        text = script(words, request.env, request.cwd)
        with Output(request.limits.output_bytes, log) as output, ExitStack() as opened:
            spare = None if ahead is None else ahead.take(self, request)
            if spare is not None:
                opened.callback(spare.end)
            workdir_fd = opened.enter_context(_directory(request.workdir))
            owner = _owner(workdir_fd) if spare is None else spare.owner()
            order = Order(text, request.limits, workdir_fd, output, cancelled)
            try:
                seen = None if spare is None else spare.run(order)
                if seen is None:
                    self._hand_over(workdir_fd)
                    seen = self._supervised(request, order)
            finally:
                run_uid = os.geteuid() if self._uid is None else self._uid
                used, removed = take_back(
                    workdir_fd, run_uid, None if self._uid is None else owner
                )
            return _result(seen, request.limits, used, removed, output)

    def _hand_over(self, workdir_fd: int) -> None:
        if self._uid is None:
            return
        try:
            hand_over(workdir_fd, self._uid)
        except OSError as error:
            raise StartFailed(f"chown to {self._uid}: {error.strerror}") from error

    def _supervised(self, request: Request, order: Order) -> Seen:
        command = self._command(request)

        def whole() -> Seen:
            with (
                held(command, self._uid) as (sandbox, init_pid),
                Meter(init_pid, order.workdir_fd, sandbox.group) as meter,
            ):
                return follow(sandbox, meter, order)

        if self._uid is None:
            return whole()
        return OwnThread(whole, "labd-sandbox").result(order.interrupted)

    def _command(self, request: Request) -> Command:
        python = interpreter()
        binds = binds_of(request, python)
        return Command(
            bwrap=self._config.bwrap,
            binds=binds,
            options=lambda sources: options(request, python, binds, sources, nested=self._nested),
            rlimits=rlimits(request.limits, gpus=bool(request.gpus)),
            syscall_filter=syscall_filter(),
            group=self._plan(request.limits),
        )

    def _plan(self, limits: Limits) -> Plan | None:
        if self._base.unified is None and not self._base.controllers:
            return None
        return Plan(self._base, limits.memory_bytes, limits.processes, limits.cpus)

    def _tried(self) -> list[Gap]:
        """Give the promises that are broken when they are tried, those of a sandbox before those of its limits."""
        self._base = find_base()
        found = self._probe()
        group = [gap for gap in found if gap.name == "cgroup"]
        if group:  # one that can't be used after all
            self._base = Base(problem=group[0].what)
            found = self._probe()
        if found:
            return found + group
        if self._base.problem:
            group = group or [find.of_group(self._base.problem)]
        return group + self._limit_gaps(grouped=not self._base.problem)

    def _limit_gaps(self, *, grouped: bool) -> list[Gap]:
        trials = (*find.TRIALS, *((find.GROUP_TRIAL,) if grouped else ()))
        # One directory around them all, which is all that is left if labd is killed meanwhile.
        with (
            tempfile.TemporaryDirectory(prefix="labd-trial-") as name,
            ThreadPoolExecutor(len(trials) + 1, "labd-trial") as pool,
        ):
            limited = pool.submit(self._trial, find.LIMITS_TRIAL, Path(name))
            results = list(pool.map(self._trial, trials, [Path(name)] * len(trials)))
        found = find.of_limits(limited.result().output, find.LIMITS_TRIAL.limits)
        for trial, result in zip(trials, results, strict=True):
            found += find.of_trial(trial, result)
        return found

    def _trial(self, trial: find.Trial, place: Path) -> SandboxResult:
        workdir = place / trial.name
        workdir.mkdir()
        request = Request(("sh", "-c", trial.script), workdir, {}, {}, trial.limits)
        return self._run(request, None, threading.Event())

    def _probe(self) -> list[Gap]:
        """Start a real sandbox, and give what it shows; without the ban on nesting if it won't start with it."""
        try:
            return self._probe_once()
        except StartFailed as error:
            words = str(error)
        self._nested = True
        try:
            return self._probe_once()
        except StartFailed:
            return [find.of_start(words)]

    def _probe_once(self) -> list[Gap]:
        with tempfile.TemporaryDirectory(prefix="labd-probe-") as name:
            canary = Path(name) / "canary"
            canary.touch()
            workdir = Path(name) / "work"
            workdir.mkdir()
            argv = ("sh", "-c", find.PROBE, "sh", str(canary))
            request = Request(argv, workdir, {}, {}, _PROBE_LIMITS)
            output = self._run(request, None, threading.Event()).output
        names = environment(interpreter(), network=False)
        return find.of_probe(output, names, filtered=syscall_filter() is not None)


def _refuse_log(log: Path | None, workdir: Path) -> None:
    if log is not None and log.parent.resolve().is_relative_to(workdir):
        raise SandboxError(
            f"the log {log} lies where the run can write", fix="Put it outside the workdir"
        )


def _checked(request: Request, *, root: bool) -> Request:
    """Give the request with its paths resolved, or say what is wrong with it."""
    workdir = request.workdir.resolve()
    read_only = {inside: source.resolve() for inside, source in request.read_only.items()}
    if not workdir.is_dir():
        raise SandboxError(
            "the working directory is not a directory", where=printable(str(workdir))
        )
    for source in read_only.values():
        if not source.exists():
            raise SandboxError("an input is not there", where=printable(str(source)))
        wanted = 0o005 if source.is_dir() else 0o004
        if root and stat.S_IMODE(source.stat().st_mode) & wanted != wanted:
            fix = f"Where labd is root, runs are another user: chmod -R o+rX {shlex.quote(str(source))}"
            raise SandboxError(
                "a run may not read this input", where=printable(str(source)), fix=fix
            )
    if any("\0" in place or len(place) > MAX_TEXT_BYTES for place in read_only):
        raise SandboxError(
            "the place of an input is not one",
            fix=f"No NUL bytes, and at most {MAX_TEXT_BYTES} characters",
        )
    if any(index < 0 for index in request.gpus):
        raise SandboxError(f"GPUs are numbered from 0, got {request.gpus}")
    return replace(request, workdir=workdir, read_only=read_only)


def _result(
    seen: Seen, limits: Limits, used: Usage, removed: int, output: Output
) -> SandboxResult:
    ending, exit_code = seen.ending, seen.exit_code
    too_much = used.size_bytes > limits.disk_bytes or used.files > limits.files
    if ending is Ending.EXITED and too_much:
        ending, exit_code = Ending.DISK_LIMIT, None
    return SandboxResult(
        ending=ending,
        exit_code=exit_code,
        wall_s=seen.wall_s,
        cpu_s=seen.cpu_s,
        peak_memory_bytes=seen.peak_memory_bytes,
        output=output.finish(),
        removed=removed,
    )


def _owner(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_uid, status.st_gid


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
