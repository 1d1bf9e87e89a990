"""A server with LM Studio's API and ways, in front of real llama.cpp servers.

  python -m tests.servers.lmstudio --port 1234 --model alpha --model beta=/tmp/b.gguf,thinking

Its ways: an unknown path gets 200 and `{"error": "Unexpected endpoint …"}`; a model loads at its first request,
which puts the last one loaded that way out; the context length is fixed at the load; `response_format` is
`json_schema` or `text`. A model is written as for `tests.servers.ollama`. GET /_test/counters counts.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.servers import tiny_model, upstream
from tests.servers.catalogue import Model
from tests.servers.counters import Counters
from tests.servers.lifetime import Lifetime, ServerProcess, make_parser
from tests.servers.web import ClientLeft, Failure, Handler, Hangup, Server, shut


@dataclass(frozen=True)
class Instance:
    """A loaded model; `jit`: loaded by a request for it, and put out by the next such load."""

    model: Model
    process: ServerProcess
    num_ctx: int
    jit: bool


class Host:
    """The models, loaded and not."""

    def __init__(self, models: list[Model], num_ctx: int, slots: int, load_s: float) -> None:
        self.models = {model.name.removesuffix(":latest"): model for model in models}
        self.counters = Counters()
        self._num_ctx, self._slots, self._load_s = num_ctx, slots, load_s
        self._lock = threading.Lock()
        self._loaded: dict[str, Instance] = {}

    def find(self, key: Any) -> Model:
        """Give the model of a key.

        Raises:
            Failure: 404, there is none.

        """
        if model := self.models.get(key):
            return model
        raise Failure(404, f"Model not found: {key}")

    def loaded(self, key: str) -> Instance | None:
        """Give the instance of a model that is loaded."""
        return self._loaded.get(key)

    def provide(self, key: Any) -> Instance:
        """Give the instance of a model, loaded if need be."""
        self.find(key)
        with self._lock:
            for name in [n for n, i in self._loaded.items() if i.jit and n != key]:
                if key not in self._loaded:
                    self._put_out(name)
            return self._loaded.get(key) or self._load(key, self._num_ctx, jit=True)

    def load(self, key: Any, num_ctx: int | None) -> Instance:
        """Load a model because somebody said so; it stays until it is unloaded."""
        self.find(key)
        with self._lock:
            if key in self._loaded:
                self._put_out(key)
            return self._load(key, num_ctx or self._num_ctx, jit=False)

    def _load(self, key: str, num_ctx: int, *, jit: bool) -> Instance:
        model = self.models[key]
        with self.counters.loading(key):
            time.sleep(self._load_s)
            options = (f"--model={model.path}", f"--name={key}", f"--slots={self._slots}")
            process = ServerProcess("tests.servers.llama", *options, f"--ctx={num_ctx}")
        self._loaded[key] = Instance(model, process, num_ctx, jit)
        return self._loaded[key]

    def unload(self, key: Any) -> None:
        """Put a model out, also in the middle of a reply.

        Raises:
            Failure: 404, it is not loaded.

        """
        with self._lock:
            if key not in self._loaded:
                raise Failure(404, f"Model instance not found: {key}")
            self._put_out(key)

    def _put_out(self, key: str) -> None:
        self._loaded.pop(key).process.stop()
        self.counters.count(key, "unloads")

    def close(self) -> None:
        """Put everything out."""
        for key in list(self._loaded):
            self._put_out(key)


class LmStudioServer(Server):
    """The HTTP server of one host; `api_key` empty wants none."""

    def __init__(self, address: tuple[str, int], host: Host, api_key: str) -> None:
        super().__init__(address, LmStudioHandler)
        self.models, self.api_key = host, api_key


class LmStudioHandler(Handler):
    """LM Studio's routes."""

    server: LmStudioServer

    def answer(self) -> None:
        """Answer one request."""
        raw = self.raw_body()
        host, path = self.server.models, self.at()
        routes: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
            ("GET", "/v1/models"): lambda _: self._openai_models(),
            ("GET", "/api/v1/models"): lambda _: {"models": self._native_models()},
            ("POST", "/api/v1/models/load"): self._load,
            ("POST", "/api/v1/models/unload"): self._unload,
            ("GET", "/_test/counters"): lambda _: host.counters.report(),
        }
        try:
            self._check_key()
            if (self.command, path) == ("POST", "/v1/chat/completions"):
                self._chat(json.loads(raw))
            elif route := routes.get((self.command, path)):
                self.reply(200, route(json.loads(raw or b"{}")))
            else:
                error = f"Unexpected endpoint or method. ({self.command} {path})"
                self.reply(200, {"error": error})
        except ValueError as error:
            self.reply(400, {"error": f"Invalid JSON: {error}"})
        except Failure as failure:
            self.reply(failure.status, {"error": {"message": failure.message}})

    def _check_key(self) -> None:
        wanted = self.server.api_key
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            raise Failure(401, "Malformed or missing API token")

    def _openai_models(self) -> dict[str, Any]:
        shared = {"object": "model", "owned_by": "organization_owner"}
        return {"object": "list", "data": [{"id": k, **shared} for k in self.server.models.models]}

    def _native_models(self) -> list[dict[str, Any]]:
        listed = []
        for key, model in self.server.models.models.items():
            instance = self.server.models.loaded(key)
            config = {"context_length": instance.num_ctx} if instance else {}
            listed.append(
                {
                    "key": key,
                    "type": "llm",
                    "size_bytes": model.size_bytes,
                    "max_context_length": model.context_length,
                    "quantization": {"name": "F32", "bits_per_weight": 32},
                    "format": "gguf",
                    "loaded_instances": [{"id": key, "config": config}] if instance else [],
                }
            )
        return listed

    def _load(self, body: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        num_ctx = (body.get("config") or {}).get("context_length") or body.get("context_length")
        instance = self.server.models.load(body.get("model"), num_ctx)
        return {
            "type": "llm",
            "instance_id": body["model"],
            "model_instance_id": body["model"],
            "load_time_seconds": time.monotonic() - began,
            "status": "loaded",
            "config": {"context_length": instance.num_ctx},
        }

    def _unload(self, body: dict[str, Any]) -> dict[str, Any]:
        self.server.models.unload(body.get("instance_id"))
        return {"instance_id": body["instance_id"]}

    def _chat(self, body: dict[str, Any]) -> None:
        form = (body.get("response_format") or {}).get("type", "text")
        if form not in {"json_schema", "text"}:
            raise Failure(400, "'response_format.type' must be 'json_schema' or 'text'")
        counters = self.server.models.counters
        record = counters.saw(self.at(), body)
        instance = self.server.models.provide(body.get("model"))
        hangup = self.server.watch.begin(self.connection)
        try:
            with counters.generating(body["model"]):
                record["status"] = self._pass_on(instance, body, hangup)
            counters.count(body["model"], "served")
        except ClientLeft:
            self.close_connection = True
        finally:
            self.server.watch.end(self.connection)

    def _pass_on(self, instance: Instance, body: dict[str, Any], hangup: Hangup) -> int:
        """Give the llama server's reply to the client as it comes; give its status."""
        try:
            link, connection = upstream.send(instance.process.url, self.at(), body)
            hangup.then(lambda: shut(connection))
            with closing(link):
                reply = link.getresponse()
                kind = reply.headers.get("Content-Type", "application/json")
                if reply.status != 200 or not body.get("stream"):
                    self.reply(reply.status, reply.read().decode(), kind)
                    return reply.status
                self.begin_stream(kind)
                while data := reply.read1():
                    self.send_chunk(data)
                self.send_chunk(b"")
        except (OSError, http.client.HTTPException) as error:
            # The model was put out, or the client left: the connection ends, without an end of the reply.
            raise ClientLeft from error
        return 200


def main() -> None:
    """Serve until told to end."""
    parser = make_parser("lmstudio", __doc__)
    parser.add_argument("--model", action="append", default=[], metavar="MODEL", help="downloaded")
    parser.add_argument("--ctx", type=int, default=4096, help="context, when a load names none")
    parser.add_argument("--slots", type=int, default=1, help="requests per model at once")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="added to a load")
    parser.add_argument("--api-key", default="", help="wanted as bearer token")
    asked = parser.parse_args()
    life = Lifetime(with_stdin=asked.with_stdin)
    directory = tiny_model.default_directory()
    models = [Model.parse(text, directory) for text in asked.model or ["tiny"]]
    host = Host(models, asked.ctx, asked.slots, asked.load_seconds)
    server = LmStudioServer((asked.host, asked.port), host, asked.api_key)
    server.serve_in_thread()
    life.serve(url=server.url, models=list(host.models))
    host.close()
    life.leave()


if __name__ == "__main__":
    main()
