"""A node that speaks Ollama's API and whose model behaves badly in one way, or answers by the rules of a Python file.

  python -m tests.servers.scripted --behaviour=garbage --model=weak
  python -m tests.servers.scripted --behaviour=crashes:5 --restarts
  python -m tests.servers.scripted --script=rules.py

A script has `def reply(messages, schema, role_hint) -> str`: messages as the API has them, the JSON schema or None,
and what the model seems to be asked as (ideas, code, write, review). With both, the behaviours `dies` and `crashes`
fall upon the script. Loading, listing and slots are as of `tests.servers.ollama`, without any process for a model.
"""

import argparse
import os
import runpy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers import tiny_model
from tests.servers.catalogue import Catalogue, Model
from tests.servers.generation import End, Part
from tests.servers.lifetime import Lifetime, ServerProcess, make_parser
from tests.servers.ollama import Node, OllamaServer
from tests.servers.scheduler import Process, Rules, Runner, RunnerOptions
from tests.servers.speaking import BEHAVIOURS, BYTES_PER_TOKEN, Asked, BrokenOff, Crash
from tests.servers.web import Failure, Hangup

_TOKENS_PER_MESSAGE = 4
_PIECE = 64
_NO_LIMIT = 100_000
_RESTART_S = 0.1
_CONTEXT = 131072
_WITH_A_SCRIPT = ("sane", "dies", "crashes")
Script = Callable[[Sequence[Mapping[str, str]], Mapping[str, Any] | None, str], str]


class _NoProcess:
    """What runs a model here: nothing."""

    url, pid, alive = "", 0, True

    def stop(self) -> None:
        """Do nothing."""

    kill = stop


class ScriptedNode(Node):
    """A node whose replies come from a function."""

    def __init__(self, catalogue: Catalogue, rules: Rules, speaks: Callable[[Asked], str]) -> None:
        super().__init__(catalogue, rules, "0.33.0", 0.0)
        self._speaks = speaks
        self._lock = threading.Lock()
        self._number = 0

    def _start(self, model: Model, options: RunnerOptions) -> Process:
        del model, options
        return _NoProcess()

    def _talk(
        self, runner: Runner, body: dict[str, Any], messages: list[dict[str, Any]], hangup: Hangup
    ) -> Iterator[Part | End]:
        del hangup
        with self._lock:
            self._number += 1
            number = self._number
        prompt_tokens = sum(_tokens(m["content"]) + _TOKENS_PER_MESSAGE for m in messages)
        room = runner.options.num_ctx - prompt_tokens
        if room <= 0:
            what = f"the prompt has {prompt_tokens} tokens, more than the context of {runner.options.num_ctx}"
            raise Failure(400, f"exceed_context_size_error: {what}")
        wanted = int((body.get("options") or {}).get("num_predict", -1))
        room = min(room, wanted if wanted > 0 else _NO_LIMIT)
        schema = body.get("format") if isinstance(body.get("format"), dict) else None
        asked = Asked(messages, schema, runner.model.name, number, room * BYTES_PER_TOKEN)
        yield from _pieces(self._speaks, asked, prompt_tokens)


def _pieces(
    speaks: Callable[[Asked], str], asked: Asked, prompt_tokens: int
) -> Iterator[Part | End]:
    try:
        said = speaks(asked)
    except BrokenOff as broken:
        if broken.after_bytes:
            yield Part("x" * broken.after_bytes)
        raise
    except Crash:
        os._exit(1)
    sent = said.encode(errors="replace")[: asked.room_bytes].decode(errors="ignore")
    for start in range(0, len(sent), _PIECE):
        yield Part(sent[start : start + _PIECE])
    cut = len(said.encode(errors="replace")) > asked.room_bytes
    counts = {"prompt_eval_count": prompt_tokens, "eval_count": max(1, _tokens(sent))}
    yield End("length" if cut else "stop", counts)


def _tokens(text: str) -> int:
    return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)


def speaker(behaviour: str, script: Path | None) -> Callable[[Asked], str]:
    """Give the function that replies, for a behaviour NAME or NAME:NUMBER and, it may be, a script's file.

    Raises:
        ValueError: there is no such behaviour, it does not go with a script, or the script has no `reply`.

    """
    name, _, number = behaviour.partition(":")
    if name not in BEHAVIOURS:
        raise ValueError(f"no behaviour {name!r}; there are {', '.join(BEHAVIOURS)}")
    act, usual = BEHAVIOURS[name]
    chosen = float(number) if number else usual
    if script is None:
        return lambda asked: act(asked, chosen)
    if name not in _WITH_A_SCRIPT:
        raise ValueError(f"a script goes with {', '.join(_WITH_A_SCRIPT)} only")
    reply: Script | None = runpy.run_path(str(script)).get("reply")
    if reply is None:
        raise ValueError(f"{script} has no function named reply")

    def speaks(asked: Asked) -> str:
        act(asked, chosen)  # raises, or is forgotten
        return reply(asked.messages, asked.schema, asked.role)

    return speaks


class Restarted:
    """The same server in a process of its own, begun again at the same port whenever it has ended."""

    def __init__(self, port: int, *arguments: str) -> None:
        self._arguments = arguments
        self._over = threading.Event()
        self._child = self._start(port)
        self.url = self._child.url
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def _start(self, port: int) -> ServerProcess:
        return ServerProcess("tests.servers.scripted", f"--port={port}", *self._arguments)

    def _keep_up(self) -> None:
        port = int(self.url.rsplit(":", 1)[-1])
        while not self._over.wait(_RESTART_S):
            if not self._child.alive:
                self._child.kill()
                self._child = self._start(port)

    def stop(self) -> None:
        """End it for good."""
        self._over.set()
        self._thread.join()
        self._child.kill()


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(
        f"  {name:14}{(act.__doc__ or '').splitlines()[0]}" + (f" [{usual:g}]" if usual else "")
        for name, (act, usual) in BEHAVIOURS.items()
    )
    epilog = f"behaviours, and their usual NUMBER:\n{known}"
    parser = make_parser("scripted", __doc__, epilog)
    parser.add_argument("--behaviour", default="sane", metavar="NAME[:NUMBER]")
    parser.add_argument("--script", type=Path, metavar="FILE", help="a Python file with `reply`")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="its names")
    parser.add_argument("--num-parallel", type=int, default=4, help="slots per model")
    parser.add_argument("--max-loaded", type=int, default=8, help="models loaded at once")
    parser.add_argument("--restarts", action="store_true", help="begin again after a crash")
    return parser


def _again(asked: argparse.Namespace) -> list[str]:
    """Give the command line for the process that is restarted."""
    arguments = [f"--host={asked.host}", f"--behaviour={asked.behaviour}"]
    arguments += [f"--script={asked.script}"] if asked.script else []
    arguments += [f"--model={name}" for name in asked.model]
    return [*arguments, f"--num-parallel={asked.num_parallel}", f"--max-loaded={asked.max_loaded}"]


def main() -> None:
    """Serve until told to end."""
    asked = _parser().parse_args()
    life = Lifetime(with_stdin=asked.with_stdin)
    if asked.restarts:
        kept_up = Restarted(asked.port, *_again(asked))
        life.serve(url=kept_up.url)
        kept_up.stop()
        life.leave()
    directory = tiny_model.default_directory()
    names = asked.model or ["scripted"]
    models = [Model.parse(f"{name},context={_CONTEXT}", directory) for name in names]
    catalogue = Catalogue(models, [], directory, 0.0)
    rules = Rules(max_loaded=asked.max_loaded, num_parallel=asked.num_parallel)
    node = ScriptedNode(catalogue, rules, speaker(asked.behaviour, asked.script))
    server = OllamaServer((asked.host, asked.port), node)
    server.serve_in_thread()
    life.serve(url=server.url, models=[model.name for model in models])
    life.leave()


if __name__ == "__main__":
    main()
