"""Bringing files from the head to the node: what the earlier attempts left, and templates."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from labd.errors import Busy
from labd.shipping.link import Link
from labd.shipping.model import CHUNK_BYTES, HomeFile, checked_parts, checked_sha256
from labd.shipping.scratch import Scratch
from labd.shipping.tree import Hashes, opened, parent_of, reading
from labd.template import load_template
from labd.text import printable

Span = tuple[str, int, int]
Read = Callable[[Sequence[Span]], list[bytes | None]]

_MAX_SPANS = 512


def home_manifest(link: Link, who: Mapping[str, Any]) -> tuple[dict[str, HomeFile], str]:
    """Give all files that the head has of the task, and the task's birth.

    Raises:
        LabdError: as `Link.ask`.

    """
    files: dict[str, HomeFile] = {}
    after: str | None = ""
    birth = ""
    while after is not None:
        page = link.ask("manifest", after=after, **who)
        files |= files_of(page["files"])
        after, birth = page["next"], str(page["birth"])
    return files, birth


def files_of(data: Mapping[str, Mapping[str, Any]]) -> dict[str, HomeFile]:
    """Make files of plain data.

    Raises:
        ShippingError: a path or a hash is none.

    """
    return {
        "/".join(checked_parts(path)): HomeFile(
            int(facts["size"]), checked_sha256(facts["sha256"]), int(facts["mode"])
        )
        for path, facts in data.items()
    }


def bring(read: Read, files: Mapping[str, HomeFile], target: Path, *, old: Path | None) -> None:
    """Fill the new directory `target` with `files`; what `old` has of them is taken from there and not sent.

    Raises:
        Busy: a file changed on the head meanwhile.
        LabdError: as `Link.ask`.
        OSError: as the system gives it.

    """
    target.mkdir(parents=True)
    for folder in sorted({str(Path(path).parent) for path in files}):
        (target / folder).mkdir(parents=True, exist_ok=True)
    left = dict(sorted(files.items()))
    if old is not None and old.is_dir():
        taken = _take_over(old, target, left)
        left = {path: file for path, file in left.items() if path not in taken}
    for spans in _messages(left):
        for span, raw in zip(spans, read(spans), strict=True):
            _write(target, span, raw)
    for path, file in left.items():
        _check(target / path, path, file)
    for path, file in files.items():
        (target / path).chmod(file.mode)


def _take_over(old: Path, target: Path, files: Mapping[str, HomeFile]) -> set[str]:
    taken: set[str] = set()
    hashes = Hashes()
    with opened(old) as root_fd:
        for path, file in files.items():
            parts = tuple(path.split("/"))
            try:
                with reading(root_fd, parts) as fd:
                    info = os.fstat(fd)
                    same = info.st_size == file.size_bytes and info.st_nlink == 1
                    same = same and hashes.of(fd) == file.sha256
                if same:
                    with parent_of(root_fd, parts) as parent_fd:
                        os.rename(parts[-1], target / path, src_dir_fd=parent_fd)
                    taken.add(path)
            except OSError:
                # Whatever is there instead, a link or a FIFO: the head's file is brought.
                continue
    return taken


def _messages(files: Mapping[str, HomeFile]) -> Iterator[list[Span]]:
    """Cut the files into pieces, as many to a message as fit."""
    message: list[Span] = []
    room = CHUNK_BYTES
    for path, file in files.items():
        offset = 0
        while True:
            if room == 0 or len(message) >= _MAX_SPANS:
                yield message
                message, room = [], CHUNK_BYTES
            size = min(room, file.size_bytes - offset)
            message.append((path, offset, size))
            offset, room = offset + size, room - size
            if offset >= file.size_bytes:
                break
    if message:
        yield message


def _write(target: Path, span: Span, raw: bytes | None) -> None:
    path, offset, size_bytes = span
    if raw is None or len(raw) != size_bytes:
        raise Busy("a file changed on the head while it was fetched", where=printable(path))
    with (target / path).open("wb" if offset == 0 else "ab") as file:
        file.write(raw)


def _check(copy: Path, path: str, file: HomeFile) -> None:
    with copy.open("rb") as opened_copy:
        if hashlib.file_digest(opened_copy, "sha256").hexdigest() != file.sha256:
            raise Busy("a file changed on the head while it was fetched", where=printable(path))


def bring_template(link: Link, scratch: Scratch, name: str) -> list[str]:
    """Give the template roots of this node under which `name` is the template that the head has.

    Raises:
        ConfigError: the head has no such template.
        Busy: it changes all the time.
        LabdError: as `Link.ask`.

    """
    facts = link.ask("template_manifest", name=name)
    if facts["shipped"] and load_template(name, roots=[]).sha256 == facts["sha256"]:
        return []
    root = scratch.templates / checked_sha256(facts["sha256"])
    directory = root.joinpath(*checked_parts(facts["directory"]))
    with ExitStack() as stack:
        stack.enter_context(scratch.template_held(root.name))
        if not directory.is_dir() or load_template(name, roots=[root]).sha256 != facts["sha256"]:
            scratch.drop_template(root.name)

            def read(spans: Sequence[Span]) -> list[bytes | None]:
                answer: list[bytes | None] = link.ask("template_read", name=name, wanted=spans)
                return answer

            part = root.with_name(f".{root.name}.part")
            bring(read, files_of(facts["files"]), part, old=None)
            directory.parent.mkdir(parents=True, exist_ok=True)
            part.rename(directory)
        os.utime(root)
    return [str(root)]
