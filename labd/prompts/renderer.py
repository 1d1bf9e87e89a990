"""The other side of `labd.prompts.wording`: a process that renders Jinja texts, and may die of it.

Run as a script, by its path; knows nothing of labd. Reads JSON lines: first ``{"texts": {name: source}, …}`` with
its limits, then ``{"variables": {…}}`` for each rendering. Answers each with one line: ``{"texts": {name: text}}``, or
``{"error": …, "name": …, "line": …}``. A rendering that uses too much CPU ends the process by SIGPROF.
"""

import json
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FAULTS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(MemoryError, RecursionError, TypeError, ValueError),
)


class TooLong(TemplateError):
    """The rendered text is longer than it may be."""


def make_environment() -> ImmutableSandboxedEnvironment:
    """Give the Jinja in which prompts are written: nothing undefined, nothing random, no files."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    # The same line has to give the same prompt, or a later attempt would ask it again.
    del environment.filters["random"]
    del environment.globals["lipsum"]
    # Jinja's own escapes <, > and & for HTML.
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _rendered(template: Template, variables: Mapping[str, Any], most: int) -> str:
    parts, length = [], 0
    for part in template.generate(variables):
        length += len(part)
        if length > most:
            message = f"it gives more than {most:,} characters"
            raise TooLong(message)
        parts.append(part)
    return "".join(parts)


def _limit(memory_bytes: int) -> None:
    """Take away from this process what rendering does not need."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(what, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _fault(error: BaseException, name: str) -> dict[str, Any]:
    said = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        said = "it needs too much memory"
    if isinstance(error, RecursionError):
        said = "it calls itself too deeply"
    line = error.lineno if isinstance(error, TemplateSyntaxError) else None
    return {"error": said[:500], "name": name, "line": line}


def main() -> None:
    """Answer until standard input ends."""
    given = json.loads(sys.stdin.buffer.readline())
    _limit(given["memory_bytes"])
    environment, templates = make_environment(), dict[str, Template]()
    asked: dict[str, Any] | None = None
    while True:
        signal.setitimer(signal.ITIMER_PROF, given["cpu_s"])
        name, texts, answer = "", dict[str, str](), {}
        try:
            for name, source in given["texts"].items():
                if asked is None:
                    templates[name] = environment.from_string(source)
                else:
                    texts[name] = _rendered(templates[name], asked, given["characters"])
        except _FAULTS as error:
            answer = _fault(error, name)
        raw = json.dumps(answer or {"texts": texts}).encode() + b"\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        request = sys.stdin.buffer.readline()
        if not request:
            return
        asked = json.loads(request)["variables"]


if __name__ == "__main__":
    main()
