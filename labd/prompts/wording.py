"""From a line of the input to the messages that are sent: the system text, the template, both Jinja.

A Jinja text comes from a task file, and variables from data. So texts are rendered in a process of its own, with
limits on its CPU time, its memory and what it gives: no sandbox of Jinja's stops ``10 ** 10 ** 10``.
"""

import hashlib
import json
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

from labd.llm.model import Message, Options
from labd.prompts.lines import Bad, Line
from labd.task import TaskSpec
from labd.text import printable

_SCRIPT = Path(__file__).parent / "renderer.py"
_MARKS = ("{{", "{%", "{#")


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may use."""

    cpu_s: float = 2.0
    wall_s: float = 60.0
    memory_bytes: int = 768 * 2**20
    characters: int = 4_000_000


class RenderError(Exception):
    """A text could not be rendered. `name` says which: ``template`` or ``system``; `line` where in it, if known."""

    def __init__(self, what: str, name: str = "", line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.name, self.line = what, name, line


class Renderer:
    """Renders Jinja texts with variables, in a process that is started as needed. Any thread may call.

    Args:
        texts: sources by name.
        limits: what each rendering may use; the process ends that uses more.

    """

    def __init__(self, texts: Mapping[str, str], limits: RenderLimits | None = None) -> None:
        self._texts = dict(texts)
        self._limits = limits or RenderLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, variables: Mapping[str, Any]) -> dict[str, str]:
        """Give each text by its name.

        Raises:
            RenderError: one can't be rendered; the text says why.

        """
        with self._lock:
            self._started()
            texts: dict[str, str] = self._asked({"variables": variables})["texts"]
        return texts

    def compile(self) -> None:
        """Pass if the texts are Jinja.

        Raises:
            RenderError: one is not.

        """
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _started(self) -> None:
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            bufsize=0,
        )
        limits = self._limits
        told = {"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes}
        self._asked({"texts": self._texts, "characters": limits.characters, **told})

    def _asked(self, request: Mapping[str, Any]) -> Any:
        process = cast("subprocess.Popen[bytes]", self._process)
        to_it, from_it = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        left = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while left:
                left = left[to_it.write(left) :]
            raw = self._answer(from_it)
        except BrokenPipeError:
            raw = b""
        if not raw.endswith(b"\n"):
            raise RenderError(self._end())
        answer = json.loads(raw)
        if "error" in answer:
            if "variables" not in request:
                self._end()
            raise RenderError(answer["error"], answer["name"], answer["line"])
        return answer

    def _answer(self, from_it: IO[bytes]) -> bytes:
        deadline_s, parts = time.monotonic() + self._limits.wall_s, list[bytes]()
        while not (parts and parts[-1].endswith(b"\n")):
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _, _ = select.select([from_it], [], [], left_s)
            part = from_it.read(2**20) if ready else b""
            if not part:
                return b""
            parts.append(part)
        return b"".join(parts)

    def _end(self) -> str:
        """End the process; say of what it died, if it had."""
        if self._process is None:
            return ""
        process, self._process = self._process, None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if code == -signal.SIGPROF:
            return f"it takes more than {self._limits.cpu_s:g} s to render"
        return f"it can't be rendered: its process ended with {code}"


class Wording:
    """Makes the messages of each line of a task's input. Any thread may call; `close` ends its process."""

    def __init__(self, spec: TaskSpec, limits: RenderLimits | None = None) -> None:
        self._system = spec.system
        self.templated = spec.template is not None
        texts = {"template": spec.template} if spec.template is not None else {}
        if spec.system is not None and is_jinja(spec.system):
            texts["system"] = spec.system
        self._jinja = Renderer(texts, limits) if texts else None

    def messages(self, line: Line) -> list[Message]:
        """Give what is sent for a line: its own system text goes before the task's.

        Raises:
            Bad: a text can't be rendered with the line's variables, or gives nothing.

        """
        texts: Mapping[str, str] = {}
        if self._jinja is not None:
            try:
                texts = self._jinja.render(line.variables)
            except RenderError as error:
                place = f" (line {error.line} of it)" if error.line else ""
                found = f"{error.name or 'template'}: {printable(error.what, 300)}{place}"
                raise Bad(found, "variables that it can be rendered with") from error
        messages = list(line.messages)
        if self.templated:
            if not texts["template"].strip():
                raise Bad("template: it gives an empty prompt", "variables that give one")
            messages = [Message("user", texts["template"])]
        system = texts.get("system", self._system) if line.system is None else line.system
        if system and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        return messages

    def close(self) -> None:
        """End the process that renders."""
        if self._jinja is not None:
            self._jinja.close()


def is_jinja(text: str) -> bool:
    """Say whether a text has anything for Jinja to do."""
    return any(mark in text for mark in _MARKS)


def sha256_of(value: object) -> str:
    """Give the SHA-256 of `value` as canonical JSON."""
    raw = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(raw.encode()).hexdigest()


def prompt_sha256(
    messages: Sequence[Message], options: Options, schema: Mapping[str, Any] | None
) -> str:
    """Give the hash of all that a reply depends on, but for the model's weights and the server."""
    return sha256_of(
        {
            "messages": [[message.role, message.content] for message in messages],
            **asked_of(options, schema),
        }
    )


def asked_of(options: Options, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give as JSON data what is the same for all prompts of a task."""
    shown = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    shown |= {"stop": list(options.stop), "more": dict(options.more)}
    return {"options": shown, "schema": schema}
