"""A task's log as it comes: a command's output, or the steps of research. Text is made harmless for terminals."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from labd.archive import LOG, OUTPUT
from labd.errors import NotFound
from labd.files import json_objects
from labd.lab import Lab
from labd.published import opened
from labd.text import printable

_MAX_LINE = 10_000


class LogFollower:
    """Gives what is new of a task's log to `out`, line by line."""

    def __init__(
        self, lab: Lab, task: str, out: Callable[[str], None], *, as_json: bool = False
    ) -> None:
        self._lab, self._task, self._out, self._as_json = lab, task, out, as_json
        self._log_offset = 0
        self._output_offset = 0
        self._half_line = b""

    def print_new(self) -> None:
        """Give what has come since the last call, in whole lines."""
        if self._lab.output(self._task) is not None:
            self._print_output()
        else:
            self._print_steps()

    def finish(self) -> None:
        """Give the rest, also where it ends without a line's end."""
        self.print_new()
        if self._half_line:
            self._print_line(self._half_line)
            self._half_line = b""

    def _print_output(self) -> None:
        while (found := self._lab.output(self._task, self._output_offset)) is not None:
            raw, after = found
            if after < self._output_offset:
                self._half_line = b""  # another attempt has begun
            self._output_offset = after
            if not raw:
                return
            *lines, half = (self._half_line + raw).split(b"\n")
            for line in lines:
                self._print_line(line)
            self._half_line = half

    def _print_line(self, line: bytes) -> None:
        # Of a line that overwrote itself, as progress bars do, what was left at its end.
        last = line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
        text = printable(last.expandtabs(), _MAX_LINE)
        self._out(json.dumps({"output": text}) if self._as_json else text)

    def _print_steps(self) -> None:
        while True:
            lines, after = self._lab.log_lines(self._task, self._log_offset)
            if after == self._log_offset:
                return
            self._log_offset = after
            for line in lines:
                self._out(json.dumps(line) if self._as_json else _step(line))


def tail(lab: Lab, task: str, most_bytes: int) -> tuple[list[str], int]:
    """Give the last lines of a task's log, and how many bytes it has in all. Only a published file is read."""
    for name in (OUTPUT, LOG):
        try:
            with opened(lab.home.results, task, name) as file:
                start = max(0, file.size_bytes - most_bytes)
                raw = os.pread(file.fd, most_bytes, start)
        except NotFound:
            continue
        if start:
            raw = raw[raw.find(b"\n") + 1 :]  # not from the middle of a line
        return list(_output_lines(raw) if name == OUTPUT else _step_lines(raw)), file.size_bytes
    return [], 0


def _output_lines(raw: bytes) -> Iterator[str]:
    for line in raw.decode(errors="replace").splitlines():
        yield line.rstrip("\r").rsplit("\r", 1)[-1]


def _step_lines(raw: bytes) -> Iterator[str]:
    yield from map(_step, json_objects(raw))


def _step(line: dict[str, Any]) -> str:
    skip = ("event", "level", "timestamp", "task_id", "attempt")
    facts = (f"{key}={printable(str(value))}" for key, value in line.items() if key not in skip)
    at, event = str(line.get("timestamp", ""))[11:19], printable(str(line.get("event", "")))
    return " ".join((at, event, *facts))
