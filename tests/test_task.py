"""What a task file may say, and what people are told when it says something else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labd.errors import TaskFileError
from labd.task import check_name, is_task_name, numbered, parse_task, task_id
from labd.yamlfile import InvalidFile, load_yaml
from tests.factories import task_text


def problems(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    with pytest.raises(TaskFileError) as caught:
        parse_task(raw, "x.yaml")
    return str(caught.value)


def test_a_whole_task_file_is_read() -> None:
    task = parse_task(
        task_text(priority=5, timeout="1h30m", num_gpus=0.5, num_cpus=2, seed=7).encode(), "x.yaml"
    )
    assert (task.spec.priority, task.spec.timeout, task.spec.num_gpus, task.spec.num_cpus) == (
        5,
        5400.0,
        0.5,
        2.0,
    )
    assert len(task.sha256) == 64


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_known_key() -> None:
    said = problems("kind: research\ntemplate: digits\n  \npriorty: 3\n")
    assert said.startswith("x.yaml:4:1: priorty: unknown key")
    assert said.endswith("nearest known: priority")


def test_every_problem_is_told_in_the_order_of_the_file() -> None:
    lines = problems("template: digits\nnum_gpus: -1\nnum_cpus: two\nkind: reserch\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["x.yaml:2:1", "x.yaml:3:1", "x.yaml:4:1"]
    assert "found -1; wanted: greater than or equal to 0" in lines[0]
    assert "found 'two'; wanted: a number" in lines[1]
    assert lines[2].endswith("nearest known: research")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file is empty"),
        (b"\n  \n", "the file is empty"),
        (b"# only a comment\n", "found nothing"),
        (b"just words", "found a text"),
        (b"- a\n- b", "found a list"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "NUL bytes"),
        (b"kind: \xff\xfe", "x.yaml:1:7: byte 0xff is not UTF-8"),
        (b"template: [", "not YAML"),
        (b"a: 1\nb: 2\na: 3\n", "x.yaml:3:1: a: the key stands twice, first in line 1"),
        (b"template: !!python/object/apply:os.system [ls]", "the tag"),
        (b"a: &x [1]\nb: *x", "an anchor or alias"),
        (b"template: digits\n---\ntemplate: digits\n", "a second document"),
        (b"1: 2", "a key that is not a text"),
        (b"[" * 100_000, "nesting deeper"),
        (b"template: " + b"[" * 40 + b"]" * 40, "nesting deeper"),
        (b"template: digits\ntimeout: forever", "a duration is"),
        (b"template: digits\npriority: true", "wanted: a whole number"),
        (b"template: digits\nnum_gpus: 1.5", "whole GPUs above 1"),
        (b"template: digits\nnum_cpus: .nan", "wanted: a finite number"),
        (b"kind: research", "wanted: a template"),
        (b"template: digits\nresearcher: llm", "not built yet"),
        (b"kind: command\ntemplate: x", "not built yet"),
        (b"template: x\x1b[31m", "x.yaml:1:12"),
        (b"x" * (2 * 2**20), "2097152 bytes; wanted: at most 1048576"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_and_where(raw: bytes, said: str) -> None:
    assert said in problems(raw)


def test_scalars_follow_yaml_1_2() -> None:
    data = load_yaml(
        b"a: 1e-3\nb: yes\nc: 12:30\nd: 0o17\ne: 010\nf: '1'\ng: ~\nh: 2026-01-01\n"
    ).data
    assert data == {
        "a": 0.001,
        "b": "yes",
        "c": "12:30",
        "d": "0o17",
        "e": 10,
        "f": "1",
        "g": None,
        "h": "2026-01-01",
    }


def test_an_escape_sequence_in_the_file_never_reaches_the_message() -> None:
    assert "\x1b" not in problems('"\\e[31mkey": 1\ntemplate: "\\e[2J"\n')


@given(st.binary(max_size=300))
def test_no_bytes_make_anything_but_a_task_or_a_told_problem(raw: bytes) -> None:
    with contextlib.suppress(InvalidFile):
        load_yaml(raw)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=80),
    st.integers(1, 99_999),
)
def test_numbered_names_fit_the_file_system_and_stay_task_names(stem: str, number: int) -> None:
    name = (stem.encode()[:250].decode(errors="ignore") or "x") + ".yaml"
    assert len(numbered(name, number).encode()) <= 255
    assert numbered(name, number).endswith(".yaml")


def test_what_is_not_meant_as_a_task_is_left_alone() -> None:
    names = [".x.yaml", "x.yaml.tmp", "x.yaml.part", "x.yaml~", "x.txt", "README.md"]
    assert not any(is_task_name(name) for name in names)
    assert [task_id(n) for n in ("x.yaml", "a.b.yml", "ü ö.yaml")] == ["x", "a.b", "ü ö"]


@pytest.mark.parametrize(
    "name", ["a\nb.yaml", "\x1b[31m.yaml", "x" * 251 + ".yaml", "bad\udcff.yaml"]
)
def test_names_that_could_harm_are_refused(name: str) -> None:
    with pytest.raises(TaskFileError, match="rename it"):
        check_name(name)
