"""The code of a task's trials: a git repository with a commit for each, and directories to run them from.

The repository is made of what is on record and never read back: every attempt makes it anew, with the same hashes,
so that nothing depends on what a killed one left of it.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dulwich.errors import NotGitRepository
from dulwich.index import build_index_from_tree, commit_tree
from dulwich.objects import Blob, Commit, ObjectID
from dulwich.refs import HEADREF, Ref
from dulwich.repo import Repo

from labd.errors import ConfigError, StorageError
from labd.files import write_atomic
from labd.research.bench import Code
from labd.research.edits import MAX_FILE_BYTES
from labd.research.hunks import patch
from labd.template import Template
from labd.text import printable
from labd.trees import remove_tree

MAX_TRACKED_BYTES = 2**20
"""A larger file of a template is in no commit; the first commit's message names it."""
DIRECTORY = "work"
ROOT = "template"
"""The branch of the template as it is."""
_AUTHOR = b"labd <labd@localhost>"
_CODE_DIRECTORY = ".code"
"""Holds copies for the time of a run; hidden, so that it is not taken for a result."""
_MAX_MESSAGE_LINES = 40


class Worktree:
    """The states of the code of one task. For one thread, but for `code`, which any may use.

    Args:
        results_dir: of the task; ``work/`` in it is made anew.
        template: a snapshot of it, which stays where it is.
        started_on: the day when the task began, ``2026-11-22``: the date of all commits, and so of their hashes.

    Raises:
        ConfigError: a file that may be changed is not there, or no text.
        StorageError: the disk would not take it.

    """

    def __init__(self, results_dir: Path, template: Template, *, started_on: str) -> None:
        self.template = template
        self.original = editable_texts(template)
        self._results_dir = results_dir
        self._when_s = int(datetime.fromisoformat(started_on).replace(tzinfo=UTC).timestamp())
        self._files: dict[str | None, Mapping[str, str]] = {None: self.original}
        self._commits: dict[str | None, ObjectID] = {}
        self.directory = results_dir / DIRECTORY
        for leftover in (self.directory, results_dir / _CODE_DIRECTORY):
            remove_tree(leftover)
        with _disk(self.directory):
            self._repo = Repo.init(str(self.directory), mkdir=True, default_branch=ROOT.encode())
            self._base, kept_out = self._template_blobs()
            self._commits[None] = self._commit(None, ROOT, "The template", kept_out)
        self.show(None)

    def files(self, name: str | None) -> Mapping[str, str]:
        """Give the files that may be changed, as a trial has them; ``None``: the template's.

        Raises:
            KeyError: there is no such trial.

        """
        return self._files[name]

    def add(self, name: str, files: Mapping[str, str], *, parent: str | None, message: str) -> str:
        """Commit a trial's files on a branch of its name; give the commit's hash.

        ``trials/<name>/diff.patch`` says what differs from the parent.

        Args:
            name: of the trial.
            files: all that may be changed.
            parent: the trial whose code was changed; ``None``: the template's.
            message: the commit's; may hold what a model said.

        Raises:
            StorageError: the disk would not take it.

        """
        self._files[name] = dict(files)
        target = self._results_dir / "trials" / name / "diff.patch"
        with _disk(target):
            self._commits[name] = self._commit(parent, name, message)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, patch(self.files(parent), files).encode())
        return self._commits[name].decode()

    def show(self, name: str | None) -> None:
        """Have the repository's directory hold a trial's files, for people who look there.

        Raises:
            StorageError: the disk would not take it.

        """
        with _disk(self.directory):
            self._repo.refs.set_symbolic_ref(HEADREF, _branch(name or ROOT))
            commit = self._repo[self._commits[name]]
            assert isinstance(commit, Commit)
            build_index_from_tree(
                str(self.directory), self._repo.index_path(), self._repo.object_store, commit.tree
            )

    @contextmanager
    def code(self, name: str, files: Mapping[str, str]) -> Iterator[Code]:
        """Give the template with these files in place of its own, for runs while the block goes on.

        `name` tells it from others in use. Everybody can read it, as another user's run has to.

        Raises:
            StorageError: the disk would not take it.

        """
        directory = self._results_dir / _CODE_DIRECTORY / name
        with _disk(directory):
            remove_tree(directory)
            for path in self.template.files_sha256:
                target = directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if path in files:
                    target.write_bytes(files[path].encode())
                    target.chmod(
                        0o755 if os.access(self.template.directory / path, os.X_OK) else 0o644
                    )
                else:
                    _link(self.template.directory / path, target)
            for folder, _, _ in os.walk(directory):
                Path(folder).chmod(0o755)
            directory.parent.chmod(0o755)
        try:
            yield Code(directory, sha256_of(files))
        finally:
            remove_tree(directory)

    def close(self) -> None:
        """Let go of the repository's files."""
        self._repo.close()

    def _template_blobs(self) -> tuple[dict[str, tuple[ObjectID, int]], str]:
        """Store the template's files that are small enough; say which were not."""
        stored: dict[str, tuple[ObjectID, int]] = {}
        kept_out = []
        for path in sorted({*self.template.files_sha256, *self.original}):
            source = self.template.directory / path
            size_bytes = source.stat().st_size
            if size_bytes > MAX_TRACKED_BYTES:
                kept_out.append(f"{printable(path, 200)} ({size_bytes} bytes)")
                continue
            mode = 0o100755 if os.access(source, os.X_OK) else 0o100644
            stored[path] = (self._store(source.read_bytes()), mode)
        return stored, f"Kept out for their size: {', '.join(kept_out)}" if kept_out else ""

    def _store(self, raw: bytes) -> ObjectID:
        blob = Blob.from_string(raw)
        self._repo.object_store.add_object(blob)
        return blob.id

    def _commit(self, parent: str | None, name: str, message: str, more: str = "") -> ObjectID:
        blobs = dict(self._base)
        for path, text in self._files.get(name, {}).items():
            blobs[path] = (self._store(text.encode()), blobs[path][1])
        entries = [(path.encode(), sha, mode) for path, (sha, mode) in blobs.items()]
        commit = Commit()
        commit.tree = commit_tree(self._repo.object_store, entries)
        commit.parents = [self._commits[parent]] if parent in self._commits else []
        commit.author = commit.committer = _AUTHOR
        commit.author_time = commit.commit_time = self._when_s
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding = b"UTF-8"
        lines = [*message.split("\n")[:_MAX_MESSAGE_LINES], *([] if not more else ["", more])]
        commit.message = "".join(f"{printable(line, 400)}\n" for line in lines).encode()
        self._repo.object_store.add_object(commit)
        self._repo.refs[_branch(name)] = commit.id
        return commit.id


def _branch(name: str) -> Ref:
    return Ref(b"refs/heads/" + name.encode())


def sha256_of(files: Mapping[str, str]) -> str:
    """Give one hash over the names and texts of files."""
    lines = (
        f"{hashlib.sha256(files[path].encode()).hexdigest()}  {path}\0" for path in sorted(files)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def editable_texts(template: Template) -> Mapping[str, str]:
    """Give the text of each file that may be changed.

    Raises:
        ConfigError: one is not there, is no text, or has more than `MAX_FILE_BYTES`.

    """
    return {path: _text(template.directory / path, path) for path in sorted(template.editable)}


def _text(path: Path, name: str) -> str:
    problem = ""
    try:
        if path.stat().st_size <= MAX_FILE_BYTES:
            return path.read_bytes().decode()
        problem = f"it has more than {MAX_FILE_BYTES // 1024} KiB"
    except OSError as error:
        problem = str(error.strerror)
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    raise ConfigError(
        f"the template's file {printable(name, 200)} can't be changed: {problem}",
        where=printable(str(path)),
        fix="Name text files of the template under `editable`",
    )


def _link(source: Path, target: Path) -> None:
    """Have the target be the source, which a run sees read-only, or a copy where links can't be made."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


@contextmanager
def _disk(where: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotGitRepository) as error:
        raise StorageError(
            f"the code of a trial could not be stored: {error}", where=str(where)
        ) from error
