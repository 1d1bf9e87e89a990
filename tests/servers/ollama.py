"""A node that speaks Ollama's API in front of real llama.cpp servers, one process per loaded model.

  python -m tests.servers.ollama --port 11434 --model alpha --model beta,thinking --max-loaded 1
  python -m tests.servers.ollama --model alpha=/tmp/a.gguf,vram=8000000000 --available gamma --load-seconds 5

A model is NAME[=PATH][,thinking][,native][,seed=N][,context=N][,vram=BYTES]; without PATH a tiny
one is made, whose seed comes from its name. It follows what Ollama 0.33 does (API, names, errors, loading and unloading, overflow); it is
not Ollama. For tests only: GET /_test/counters says what it did, POST /_test/reset forgets that.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from tests.servers import generation, tiny_model
from tests.servers.catalogue import Catalogue, Model, full_name, timestamp
from tests.servers.counters import Counters
from tests.servers.generation import End, Generation, Part
from tests.servers.lifetime import Lifetime, ServerProcess, make_parser
from tests.servers.scheduler import Process, Rules, Runner, RunnerOptions, Scheduler, Wish
from tests.servers.web import NDJSON, ClientLeft, Failure, Handler, Hangup, Server, lines

_TEXT = "text/plain; charset=utf-8"


class Node:
    """The catalogue, the scheduler, and what brings them together."""

    def __init__(
        self,
        catalogue: Catalogue,
        rules: Rules,
        version: str,
        seconds_per_token: float,
        *,
        cuda: bool = False,
    ) -> None:
        self.catalogue, self.version = catalogue, version
        self.counters = Counters()
        self.scheduler = Scheduler(rules, self.counters, self._start)
        self._seconds_per_token = seconds_per_token
        self._cuda = cuda

    def _start(self, model: Model, options: RunnerOptions) -> Process:
        shift = () if ("shift", False) in options.others else ("--context-shift",)
        return ServerProcess(
            "tests.servers.llama",
            f"--model={model.path}",
            f"--name={model.name}",
            f"--slots={self.scheduler.rules.num_parallel}",
            f"--ctx={options.num_ctx}",
            f"--cuda-bytes={self.scheduler.size_vram(model) if self._cuda else 0}",
            *shift,
        )

    def generate(
        self, body: dict[str, Any], messages: list[dict[str, Any]], hangup: Hangup
    ) -> Generator[Part | End, None, None]:
        """Give the reply to `messages`; without any, load the model or unload it.

        Raises:
            Failure: anything that Ollama answers with an error.
            ClientLeft: the client left.

        """
        began = time.monotonic_ns()
        model = self.catalogue.find(body.get("model"))
        generation.check_request(body, model)
        keep_s = generation.keep_alive_s(body.get("keep_alive"))
        if not messages and keep_s == 0:
            self.scheduler.expire(model)
            yield End("unload")
            return
        options = generation.runner_options(body, model, self.scheduler.rules.num_ctx)
        with self.scheduler.lease(Wish(model, options, keep_s, hangup)) as runner:
            loaded = time.monotonic_ns()
            if not messages:
                yield End("load")
                return
            with runner.slots.hold(hangup), self.counters.generating(model.name):
                for piece in self._talk(runner, body, messages, hangup):
                    if isinstance(piece, End):
                        self.counters.count(model.name, "served")
                        yield self._timed(piece, began, loaded)
                    else:
                        yield piece

    def _talk(
        self, runner: Runner, body: dict[str, Any], messages: list[dict[str, Any]], hangup: Hangup
    ) -> Iterator[Part | End]:
        return Generation(runner, body, messages, hangup).run(self._seconds_per_token)

    @staticmethod
    def _timed(end: End, began_ns: int, loaded_ns: int) -> End:
        total = time.monotonic_ns() - began_ns
        durations = {"total_duration": total, "load_duration": loaded_ns - began_ns}
        return End(end.reason, {**durations, **{k: v for k, v in end.numbers.items() if v}})


class OllamaServer(Server):
    """The HTTP server of one node."""

    def __init__(self, address: tuple[str, int], node: Node) -> None:
        super().__init__(address, OllamaHandler)
        self.node = node


class OllamaHandler(Handler):
    """Ollama's routes."""

    server: OllamaServer

    def answer(self) -> None:
        """Answer one request."""
        raw = self.raw_body()
        if self.command in {"GET", "HEAD"}:
            self._answer_get()
            return
        route = self._changing_routes().get((self.command, self.at()))
        if route is None:
            self.reply(404, "404 page not found", _TEXT)
            return
        hangup = self.server.watch.begin(self.connection)
        try:
            route(self._json(raw), hangup)
        except Failure as failure:
            self.reply(failure.status, {"error": failure.message})
        except ClientLeft:
            self.close_connection = True
        finally:
            self.server.watch.end(self.connection)

    def _answer_get(self) -> None:
        node = self.server.node
        routes: dict[str, Callable[[], Any]] = {
            "/api/version": lambda: {"version": node.version},
            "/api/tags": lambda: {"models": [m.listing() for m in node.catalogue.all()]},
            "/api/ps": lambda: {"models": self._ps()},
            "/v1/models": self._v1_models,
            "/_test/counters": lambda: {**node.counters.report(), "pids": node.scheduler.pids()},
        }
        if self.at() == "/":
            self.reply(200, "Ollama is running", _TEXT)
        elif route := routes.get(self.at()):
            self.reply(200, route())
        else:
            self.reply(404, "404 page not found", _TEXT)

    def _changing_routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any], Hangup], None]]:
        return {
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/pull"): self._pull,
            ("DELETE", "/api/delete"): self._delete,
            ("POST", "/_test/reset"): self._reset,
        }

    def _delete(self, body: dict[str, Any], _: Hangup) -> None:
        catalogue = self.server.node.catalogue
        catalogue.remove(catalogue.find(body.get("model")))
        self.reply(200, "", _TEXT)

    def _json(self, raw: bytes) -> dict[str, Any]:
        if not raw:
            raise Failure(400, "missing request body")
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise Failure(400, str(error)) from error
        if not isinstance(body, dict):
            raise Failure(400, "json: cannot unmarshal into Go value")
        return body

    def _ps(self) -> list[dict[str, Any]]:
        scheduler = self.server.node.scheduler
        return [
            {
                "name": runner.model.name,
                "model": runner.model.name,
                "size": runner.model.memory_bytes,
                "digest": runner.model.digest,
                "details": runner.model.details(),
                "expires_at": timestamp(runner.left_s),
                "size_vram": scheduler.size_vram(runner.model),
                "context_length": runner.options.num_ctx,
            }
            for runner in scheduler.loaded()
        ]

    def _v1_models(self) -> dict[str, Any]:
        names = [model.name for model in self.server.node.catalogue.all()]
        shared = {"object": "model", "created": 0, "owned_by": "library"}
        return {"object": "list", "data": [{"id": name, **shared} for name in names]}

    def _reset(self, _: dict[str, Any], __: Hangup) -> None:
        self.server.node.counters.reset()
        self.reply(200, {})

    def _show(self, body: dict[str, Any], _: Hangup) -> None:
        model = self.server.node.catalogue.find(body.get("model") or body.get("name"))
        info = {
            "general.architecture": "llama",
            "llama.context_length": model.context_length,
            "llama.embedding_length": 64,
            "llama.block_count": 2,
        }
        shown = {"modelfile": f"FROM {model.name}\n", "parameters": "", "template": ""}
        about = {"capabilities": model.capabilities, "modified_at": model.modified_at}
        self.reply(200, {**shown, "details": model.details(), "model_info": info, **about})

    def _pull(self, body: dict[str, Any], hangup: Hangup) -> None:
        name = str(body.get("model") or body.get("name") or "")
        progress = self.server.node.catalogue.pull(name, hangup)
        self.server.node.counters.count(full_name(name), "pulls")
        if body.get("stream") is False:
            self.reply(200, list(progress)[-1])
        else:
            self._stream(progress)

    def _chat(self, body: dict[str, Any], hangup: Hangup) -> None:
        def shape(part: Part) -> dict[str, Any]:
            thinking = {"thinking": part.thinking} if part.thinking else {}
            return {"message": {"role": "assistant", "content": part.content, **thinking}}

        self._converse(body, body.get("messages") or [], shape, hangup)

    def _generate(self, body: dict[str, Any], hangup: Hangup) -> None:
        def shape(part: Part) -> dict[str, Any]:
            thinking = {"thinking": part.thinking} if part.thinking else {}
            return {"response": part.content, **thinking}

        prompt = [{"role": "user", "content": body["prompt"]}] if body.get("prompt") else []
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        self._converse(body, [*system, *prompt] if prompt else [], shape, hangup)

    def _converse(
        self,
        body: dict[str, Any],
        messages: list[dict[str, Any]],
        shape: Callable[[Part], dict[str, Any]],
        hangup: Hangup,
    ) -> None:
        record = self.server.node.counters.saw(self.at(), body)
        pieces = self.server.node.generate(body, messages, hangup)
        try:
            if body.get("stream") is False or not messages:
                self.reply(200, self._whole(body, pieces, shape, record))
            else:
                self._stream(self._line(body, piece, shape, record) for piece in pieces)
        except Failure as failure:
            record["failed"] = failure.status
            raise
        except (ClientLeft, ConnectionError):
            record["failed"] = 499
            raise
        finally:
            pieces.close()

    @staticmethod
    def _line(
        body: dict[str, Any],
        piece: Part | End,
        shape: Callable[[Part], dict[str, Any]],
        record: dict[str, Any],
    ) -> dict[str, Any]:
        head = {"model": body.get("model"), "created_at": timestamp()}
        if isinstance(piece, Part):
            return {**head, **shape(piece), "done": False}
        record.update(done_reason=piece.reason, **piece.numbers)
        last = {"done": True, "done_reason": piece.reason, **piece.numbers}
        return {**head, **shape(Part()), **last}

    def _whole(
        self,
        body: dict[str, Any],
        pieces: Iterator[Part | End],
        shape: Callable[[Part], dict[str, Any]],
        record: dict[str, Any],
    ) -> dict[str, Any]:
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, End):
                text = "".join(part.content for part in parts)
                thinking = "".join(part.thinking for part in parts)
                last = self._line(body, piece, shape, record)
                return {**last, **shape(Part(text, thinking))}
            parts.append(piece)
        raise Failure(500, "the runner's reply has no end")

    def _stream(self, values: Iterator[dict[str, Any]]) -> None:
        """Send lines. Before the first one an error has its status; after it, it is a line itself."""
        ready = iter(lines(values))
        first = next(ready)
        self.begin_stream(NDJSON)
        self.send_chunk(first)
        try:
            for line in ready:
                self.send_chunk(line)
        except Failure as failure:
            self.send_chunk(json.dumps({"error": failure.message}).encode() + b"\n")
        self.send_chunk(b"")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("ollama", __doc__)
    parser.add_argument("--model", action="append", default=[], metavar="MODEL", help="on disk")
    parser.add_argument(
        "--available", action="append", default=[], metavar="MODEL", help="to pull"
    )
    parser.add_argument("--max-loaded", type=int, default=3, help="models loaded at once")
    parser.add_argument("--num-parallel", type=int, default=1, help="slots per model")
    parser.add_argument("--max-queue", type=int, default=512, help="requests that wait for a load")
    parser.add_argument("--keep-alive", default="300", metavar="S", help="-1: for ever")
    parser.add_argument(
        "--load-seconds", type=float, default=0.0, metavar="S", help="added to a load"
    )
    parser.add_argument("--unload-seconds", type=float, default=0.0, metavar="S")
    parser.add_argument("--pull-seconds", type=float, default=0.5, metavar="S", help="of one pull")
    parser.add_argument("--seconds-per-token", type=float, default=0.0, metavar="S")
    parser.add_argument("--vram-bytes", type=int, default=0, help="GPU memory; 0: no limit")
    parser.add_argument("--cuda", action="store_true", help="really hold that GPU memory")
    parser.add_argument("--num-ctx", type=int, default=4096, help="context, when not asked for")
    parser.add_argument("--version", default="0.33.0", help="what it says its version is")
    parser.add_argument("--store", type=Path, help="where pulled models go (default: a new one)")
    return parser


def _rules(asked: argparse.Namespace) -> Rules:
    keep_s = generation.keep_alive_s(float(asked.keep_alive))
    return Rules(
        max_loaded=asked.max_loaded,
        num_parallel=asked.num_parallel,
        max_queue=asked.max_queue,
        keep_alive_s=300.0 if keep_s is None else keep_s,
        load_s=asked.load_seconds,
        unload_s=asked.unload_seconds,
        vram_bytes=asked.vram_bytes,
        num_ctx=asked.num_ctx,
    )


def main() -> None:
    """Serve until told to end."""
    asked = _parser().parse_args()
    life = Lifetime(with_stdin=asked.with_stdin)
    directory = tiny_model.default_directory()
    models = [Model.parse(text, directory) for text in asked.model or ["tiny"]]
    available = [Model.parse(text, directory) for text in asked.available]
    store = asked.store or Path(tempfile.mkdtemp(prefix="labd-ollama-"))
    catalogue = Catalogue(models, available, store, asked.pull_seconds)
    rules = _rules(asked)
    node = Node(catalogue, rules, asked.version, asked.seconds_per_token, cuda=asked.cuda)
    server = OllamaServer((asked.host, asked.port), node)
    server.serve_in_thread()
    life.serve(url=server.url, models=[model.name for model in models])
    node.scheduler.close()
    if asked.store is None:
        shutil.rmtree(store, ignore_errors=True)
    life.leave()


if __name__ == "__main__":
    main()
