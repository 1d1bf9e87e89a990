"""The models on a node's disk, and those that it can pull."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from tests.servers import tiny_model
from tests.servers.web import ClientLeft, Failure, Hangup

_PULL_STEPS = 20


def full_name(name: str) -> str:
    """Give a model's name with its tag, in lower case."""
    return (name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest").lower()


def timestamp(from_now_s: float = 0.0) -> str:
    """Give an RFC 3339 time; far ahead stands for never."""
    ahead = timedelta(seconds=min(from_now_s, 292 * 365.25 * 86400))
    return (datetime.now(UTC) + ahead).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Model:
    """One model on disk. `native`: a prompt too long is an error, not cut."""

    name: str
    path: Path
    thinking: bool
    native: bool
    digest: str
    size_bytes: int
    vram_bytes: int
    context_length: int
    modified_at: str = field(default_factory=timestamp)

    @classmethod
    def parse(cls, text: str, directory: Path) -> Self:
        """Read ``NAME[=PATH][,thinking][,native][,seed=N][,context=N][,vram=BYTES]``; without PATH, make a tiny model."""
        head, *flags = text.split(",")
        name, _, path_text = head.partition("=")
        given = dict(flag.partition("=")[::2] for flag in flags)
        if unknown := given.keys() - {"thinking", "native", "seed", "context", "vram"}:
            raise ValueError(f"{text!r}: unknown {', '.join(sorted(unknown))}")
        thinking = "thinking" in given
        seed, context = int(given.get("seed", _seed(name))), int(given.get("context", 8192))
        made = tiny_model.TinyModel(seed, thinking, context)
        path = Path(path_text) if path_text else tiny_model.write(made, directory)
        data = path.read_bytes()
        return cls(
            name=full_name(name),
            path=path,
            thinking=thinking,
            native=thinking or "native" in given,
            digest=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            vram_bytes=int(given.get("vram", 0)),
            context_length=tiny_model.context_length(path),
        )

    @property
    def capabilities(self) -> list[str]:
        """What Ollama says that the model can do."""
        return ["completion", *(["thinking"] if self.thinking else [])]

    @property
    def memory_bytes(self) -> int:
        """What it takes when loaded."""
        return max(self.vram_bytes, self.size_bytes)

    def details(self) -> dict[str, Any]:
        """Give the part of a listing that says how the model is made."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "124K",
            "quantization_level": "F32",
        }

    def listing(self) -> dict[str, Any]:
        """Give the entry in /api/tags."""
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": self.modified_at,
            "size": self.size_bytes,
            "digest": self.digest,
            "details": {**self.details(), "context_length": self.context_length},
            "capabilities": self.capabilities,
        }


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


class Catalogue:
    """Models by name, and downloads that go on where they stopped, also after a crash.

    A pull copies the model's file, in parts, to `<store>/<digest>-partial`. It goes on as long as anybody
    follows it; all followers see the same download.
    """

    def __init__(
        self, models: list[Model], available: list[Model], store: Path, pull_s: float
    ) -> None:
        self._models = {model.name: model for model in models}
        self._available = {model.name: model for model in available}
        self._store, self._pull_s = store, pull_s
        self._lock = threading.Lock()
        store.mkdir(parents=True, exist_ok=True)
        for model in available:
            if self._blob(model).exists():
                self._models[model.name] = model

    def _blob(self, model: Model) -> Path:
        return self._store / model.digest

    def _partial(self, model: Model) -> Path:
        return self._store / f"{model.digest}-partial"

    def all(self) -> list[Model]:
        """Give the models on disk."""
        return list(self._models.values())

    def find(self, name: Any) -> Model:
        """Give the model of a name, with or without tag.

        Raises:
            Failure: 404, it is not on disk; 400, this is no name.

        """
        if not isinstance(name, str) or not name:
            raise Failure(400, "model is required")
        if model := self._models.get(full_name(name)):
            return model
        raise Failure(404, f"model '{name}' not found")

    def remove(self, model: Model) -> None:
        """Take the model off the disk."""
        self._blob(model).unlink(missing_ok=True)
        self._models.pop(model.name, None)

    def pull(self, name: str, hangup: Hangup) -> Iterator[dict[str, Any]]:
        """Give the progress of a download until `success`."""
        yield {"status": "pulling manifest"}
        model = self._available.get(full_name(name)) or self._models.get(full_name(name))
        if model is None:
            raise Failure(500, "pull model manifest: file does not exist")
        status: dict[str, Any] = {
            "status": f"pulling {model.digest[:12]}",
            "digest": f"sha256:{model.digest}",
            "total": model.size_bytes,
        }
        if model.name not in self._models:
            step_bytes = -(-model.size_bytes // _PULL_STEPS)
            yield {**status, "completed": self._completed(model)}
            while self._completed(model) < model.size_bytes:
                if hangup.wait(self._pull_s / _PULL_STEPS):
                    raise ClientLeft
                yield {**status, "completed": self._advance(model, step_bytes)}
            with self._lock:
                if self._partial(model).exists():
                    self._partial(model).rename(self._blob(model))
                self._models[model.name] = model
        else:
            yield {**status, "completed": model.size_bytes}
        for last in ("verifying sha256 digest", "writing manifest", "success"):
            yield {"status": last}

    def _completed(self, model: Model) -> int:
        if self._blob(model).exists():
            return model.size_bytes
        partial = self._partial(model)
        return partial.stat().st_size if partial.exists() else 0

    def _advance(self, model: Model, step_bytes: int) -> int:
        with self._lock:
            done = self._completed(model)
            with self._partial(model).open("ab") as file:
                file.write(model.path.read_bytes()[done : done + step_bytes])
            return self._completed(model)
