"""What was answered: `replies.jsonl` as it comes, then `output.jsonl` and `errors.jsonl` in the input's order.

Each reply, and each error that is a prompt's own, is one line of `replies.jsonl`, in order of completion. A later
attempt asks what is not there. In memory is only where each line begins.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import numpy as np

from labd.clock import to_iso, utc_now
from labd.errors import StorageError
from labd.files import JsonLines, writing_atomic
from labd.llm.errors import ModelError
from labd.llm.model import Reply
from labd.prompts.lines import Prompts

REPLIES = "replies.jsonl"
OUTPUT = "output.jsonl"
ERRORS = "errors.jsonl"
SYNC_EVERY_S = 0.5


class Known(IntEnum):
    """What is on record of a prompt."""

    NOTHING = 0
    REPLY = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What identifies the work of an attempt: replies of the same are taken without a look at their prompts.

    Attributes:
        input_sha256: of the input's bytes.
        wording_sha256: of all in the task that a prompt is made of, and of how it is asked.

    """

    input_sha256: str
    wording_sha256: str

    def as_json(self) -> dict[str, str]:
        """Give it as the record holds it."""
        return {"input_sha256": self.input_sha256, "wording_sha256": self.wording_sha256}


class Records:
    """The replies of one task, open for one attempt. Any thread may add.

    Args:
        results: the task's directory.
        prompts: the input.
        asked: what this attempt asks.
        hash_of: gives the hash of a prompt by its index; called only for replies of other work than `asked`.

    Raises:
        StorageError, OSError: the disk would not take it, or give it.

    """

    def __init__(
        self, results: Path, prompts: Prompts, asked: Asked, hash_of: Callable[[int], str]
    ) -> None:
        self._results, self._prompts, self._asked = results, prompts, asked
        self._known = np.zeros(len(prompts), dtype=np.uint8)
        self._places = np.zeros(len(prompts), dtype=np.uint64)
        # Whether a line can go into the output as it is; one that was asked of another input tells its old place.
        self._same = np.zeros(len(prompts), dtype=np.bool_)
        self.unreadable = 0
        """Lines that could not be read, as a power cut may leave them; their prompts are asked again."""
        self._mutex = threading.Lock()
        self._dirty_since_s: float | None = None
        self._path = results / REPLIES
        self._read(hash_of)
        self._lines = JsonLines(self._path)
        self._append({"asked": asked.as_json(), "at": to_iso(utc_now())}, durable=True)

    def known(self, index: int) -> Known:
        """Say what is on record of a prompt."""
        return Known(int(self._known[index]))

    def count(self, known: Known) -> int:
        """Count the prompts of which this is on record."""
        return int(np.count_nonzero(self._known == known))

    def add_reply(self, index: int, own_id: str, sha256: str, reply: Reply) -> None:
        """Record a reply; durable after the next `sync`."""
        what = {"text": reply.text} if reply.value is None else {"value": reply.value}
        if reply.thinking:
            what["thinking"] = reply.thinking
        self._add(index, Known.REPLY, own_id, sha256, {**what, "provenance": reply.provenance()})

    def add_error(self, index: int, own_id: str, sha256: str, error: ModelError) -> None:
        """Record an error that is the prompt's own; durable after the next `sync`."""
        facts: dict[str, Any] = {"code": error.code, "message": str(error)}
        if text := getattr(error, "text", ""):
            facts["text"] = text
        self._add(index, Known.ERROR, own_id, sha256, {"error": facts})

    def end(self) -> None:
        """Have the next attempt ask again what ended with an error: somebody will have asked for it."""
        self._append({"ended": True, "at": to_iso(utc_now())}, durable=True)

    def sync(self, *, at_once: bool = False) -> None:
        """Make durable what was added, if some of it has waited for half a second or if it has to be `at_once`."""
        with self._mutex:
            since_s, now_s = self._dirty_since_s, time.monotonic()
            if since_s is None or not (at_once or now_s - since_s >= SYNC_EVERY_S):
                return
            self._dirty_since_s = None
        try:
            self._lines.sync()
        except OSError as error:
            raise self._failed(error) from error

    def write_outputs(self) -> None:
        """Write `output.jsonl` and `errors.jsonl`, each whole or not at all."""
        with self._path.open("rb") as replies:
            with writing_atomic(self._results / OUTPUT) as file:
                for index, raw in self._whole(replies.fileno(), Known.REPLY):
                    file.write(raw if self._same[index] else _line(self._placed(index, raw)))
            with writing_atomic(self._results / ERRORS) as file:
                for index, raw in self._whole(replies.fileno(), Known.ERROR):
                    record = self._placed(index, raw)
                    file.write(
                        _line({"id": record["id"], "line": record["line"], **record["error"]})
                    )

    def first_error(self) -> str:
        """Give the message of the first prompt in the input that has an error, or an empty text."""
        with self._path.open("rb") as replies:
            for index, raw in self._whole(replies.fileno(), Known.ERROR):
                return str(self._placed(index, raw)["error"]["message"])
        return ""

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- read

    def _read(self, hash_of: Callable[[int], str]) -> None:
        """Take from the record what belongs to the prompts as they are now."""
        same = False
        for offset, record in self._objects():
            if "asked" in record:
                same = record["asked"] == self._asked.as_json()
            elif "ended" in record:
                self._known[self._known == Known.ERROR] = Known.NOTHING
            elif (index := self._prompts.index_of(str(record.get("id")))) is not None and (
                same or record.get("prompt_sha256") == hash_of(index)
            ):
                self._known[index] = Known.ERROR if "error" in record else Known.REPLY
                self._places[index], self._same[index] = offset, same

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give each line that is an object, and where it begins; a torn last line is left out."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        offset = 0
        with file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                try:
                    record = json.loads(raw)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield offset, record
                else:
                    self.unreadable += 1
                offset += len(raw)

    def _whole(self, fd: int, known: Known) -> Iterator[tuple[int, bytes]]:
        """Give the index and the line of each prompt of which this is on record, in the input's order."""
        with os.fdopen(os.dup(fd), "rb") as file:
            for index in np.flatnonzero(self._known == known):
                file.seek(int(self._places[index]))
                yield int(index), file.readline()

    def _placed(self, index: int, raw: bytes) -> dict[str, Any]:
        """Give a record with the place that its prompt has now."""
        record: dict[str, Any] = json.loads(raw)
        return {**record, "index": index, "line": int(self._prompts.numbers[index])}

    # --- write

    def _add(
        self, index: int, known: Known, own_id: str, sha256: str, facts: Mapping[str, Any]
    ) -> None:
        number = int(self._prompts.numbers[index])
        head = {"id": own_id, "index": index, "line": number, "prompt_sha256": sha256}
        record = {**head, **facts, "at": to_iso(utc_now())}
        try:
            place = self._append(record)
        except UnicodeEncodeError:
            place = self._append(_whole_characters(record))
        self._places[index], self._same[index] = place, True
        self._known[index] = known

    def _append(self, record: Mapping[str, Any], *, durable: bool = False) -> int:
        with self._mutex:
            try:
                place = self._lines.append(record, durable=durable)
            except OSError as error:
                raise self._failed(error) from error
            if not durable and self._dirty_since_s is None:
                self._dirty_since_s = time.monotonic()
            return place

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"the replies could not be written: {error.strerror}", where=str(self._path)
        )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _whole_characters(value: Any) -> Any:
    """Give JSON data with U+FFFD for each half of a character, which UTF-8 can't hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [_whole_characters(part) for part in value]
    if isinstance(value, Mapping):
        return {_whole_characters(key): _whole_characters(part) for key, part in value.items()}
    return value
