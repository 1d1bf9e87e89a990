"""The errors that labd raises on purpose. Imports nothing of ours.

Each says what is wrong, where, and what to do about it, and has a stable ``code`` that programs
may test. ``retryable`` means that trying the same again later may work.
"""


class LabdError(Exception):
    """Root of all errors of labd; never raised itself."""

    code = "error"
    retryable = False

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        end = "" if text.endswith(("?", ".", "!")) else "."
        return f"{text}{end} {self.fix}" if self.fix else text

    def as_data(self) -> dict[str, str]:
        """Give the error as plain data, from which another process can make it again."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[LabdError], what: str, where: str, fix: str) -> LabdError:
    return cls(what, where=where, fix=fix)


class TaskFileError(LabdError):
    """A task file is not a valid task; the file itself has to change."""

    code = "task_file"


class ConfigError(LabdError):
    """The settings or a template are not usable as they are."""

    code = "config"


class MoveRefused(LabdError):
    """A task is not in a state from which the asked move makes sense."""

    code = "move_refused"


class NotFound(LabdError):
    """No such task, template or home."""

    code = "not_found"


class Busy(LabdError):
    """Another process holds what this one needs."""

    code = "busy"
    retryable = True


class EngineError(LabdError):
    """Ray did not start, or was lost."""

    code = "engine"
    retryable = True


class SandboxError(LabdError):
    """A sandbox could not be started, so nothing was run."""

    code = "sandbox"


class JournalError(LabdError):
    """A journal holds what can't be read, or got what can't be written."""

    code = "journal"


class StorageError(LabdError):
    """The disk would not take what had to be written."""

    code = "storage"
    retryable = True


class ResearchError(LabdError):
    """The research could not go on, for a reason that lies in the task or its template."""

    code = "research"


class TimedOut(LabdError):
    """Something took longer than it was given."""

    code = "timed_out"


class StillHeld(TimedOut):
    """What this one needs was held by another all the time that it waited: an attempt that dies, or retention."""

    code = "busy"
    retryable = True
