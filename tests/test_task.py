"""What a task file may say, and what people are told when it says something else."""

import contextlib
from datetime import UTC, datetime

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
    assert "unknown key; nearest known: priority; wanted: one of " in said


def test_every_problem_is_told_in_the_order_of_the_file() -> None:
    lines = problems("template: digits\nnum_gpus: -1\nnum_cpus: two\nkind: reserch\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["x.yaml:2:1", "x.yaml:3:1", "x.yaml:4:1"]
    assert "found -1; wanted: greater than or equal to 0" in lines[0]
    assert "found 'two'; wanted: a number" in lines[1]
    assert "nearest known: research; wanted: " in lines[2]


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
        (b"kind: command\n\trun: ls\n", "x.yaml:2:1: not YAML: "),
        (b"kind: command\n\trun: ls\n", "wanted: spaces, as YAML takes no tab here"),
        (b"a: 1\nb: 2\na: 3\n", "x.yaml:3:1: a: the key stands twice, first in line 1"),
        (b"template: !!python/object/apply:os.system [ls]", "the tag"),
        (b"a: &x [1]\nb: *x", "an anchor or alias"),
        (b"template: digits\n---\ntemplate: digits\n", "a second document"),
        (b"1: 2", "a key that is not a text"),
        (b"[" * 100_000, "nesting deeper"),
        (b"template: " + b"[" * 40 + b"]" * 40, "nesting deeper"),
        (b"template: digits\ntimeout: forever", "a duration: "),
        (b"template: digits\npriority: true", "wanted: a whole number"),
        (b"template: digits\nnum_gpus: 1.5", "whole GPUs above 1"),
        (b"template: digits\nnum_cpus: .nan", "wanted: a finite number"),
        (b"template: digits\nnum_nodes: 0", "x.yaml:2:1: num_nodes: found 0"),
        (b"template: digits\nnum_nodes: 65", "less than or equal to 64"),
        (b"template: digits\nnum_nodes: 2.0", "wanted: a whole number"),
        (b"kind: command\nrun: a\nnum_nodes: 2", "x.yaml:3:1: num_nodes: found 2; wanted: no num_nodes in a command: it belongs to kind: research"),
        (b"kind: prompts\ninput: a\nnum_nodes: 1", "no num_nodes in a task of prompts"),
        (b"kind: research", "wanted: a template"),
        (b"template: digits\nsearch: widest", "search"),
        (b"template: digits\nlanguage: english", "two letters"),
        (b"template: digits\nmetric: {name: loss}", "better"),
        (b"template: digits\nmax_hours: 0", "max_hours"),
        (b"template: digits\nstuck_after: soon", "or 0 for no limit"),
        (b"template: digits\nstuck_after: -1", "or 0 for no limit"),
        (b"template: digits\nstuck_after: false", "or 0 for no limit"),
        (b"template: digits\nstuck_after: [1]", "or 0 for no limit"),
        (b"template: digits\nmodel: {code: [a, b]}", "one model for each role"),
        (b"kind: command\nrun: ls\ncontrol: true", "x.yaml:3:1: control"),
        (b"kind: prompts", "x.yaml:1:1: kind: found 'prompts'; wanted: a key `input`"),
        (b"kind: prompts\ninput: x\nrun: ls", "x.yaml:3:1: run: found 'ls'; wanted: no run in a task of prompts: it belongs to kind: command"),
        (b"kind: prompts\ninput: x\nnum_seeds: 10", "x.yaml:3:1: num_seeds"),
        (b"template: x\ninput: a", "x.yaml:2:1: input: found 'a'; wanted: kind: prompts beside it"),
        (b"template: x\nschema: {}", "x.yaml:2:1: schema: found keys and values; wanted: kind: prompts"),
        (b"template: x\noptions: {}", "x.yaml:2:1: options"),
        (b"kind: command\nrun: ls\nsystem: a", "wanted: no system in a command: it belongs to kind: prompts"),
        (b"# a comment\nkind: command", "x.yaml:2:1: kind: found 'command'; wanted: a key `run`"),
        (b"kind: command\nrun: ls\ntemplate: x", "x.yaml:3:1: template: found 'x'; wanted: no template in a command"),
        (b"kind: command\nrun: ls\nresearcher: sweep", "x.yaml:3:1: researcher"),
        (b"kind: command\nrun: ls\nmodel: m", "x.yaml:3:1: model"),
        (b"kind: command\nrun: ls\nnum_ideas: 3", "x.yaml:3:1: num_ideas"),
        (b"kind: command\nrun: ls\nmax_runs: 3", "x.yaml:3:1: max_runs"),
        (b"kind: command\nrun: ls\nnum_seeds: 10", "x.yaml:3:1: num_seeds"),
        (b"run: ls", "x.yaml:1:1: run: found 'ls'; wanted: kind: command beside it"),
        (b"template: x\nenv: {A: a}", "x.yaml:2:1: env"),
        (b"template: x\nworkdir: /x", "x.yaml:2:1: workdir"),
        (b"template: x\ninputs: {a: /x}", "x.yaml:2:1: inputs"),
        (b"template: x\noutputs: a", "x.yaml:2:1: outputs"),
        (b"template: x\nnetwork: true", "x.yaml:2:1: network"),
        (b"template: x\x1b[31m", "x.yaml:1:12"),
        (b"x" * (2 * 2**20), "2097152 bytes; wanted: at most 1048576"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_and_where(raw: bytes, said: str) -> None:
    assert said in problems(raw)


def test_a_whole_command_is_read() -> None:
    raw = b"""kind: command
title: Train it
run: [python, train.py, --epochs, "3"]
env: {EPOCHS: "3", _a1: ""}
workdir: /data/code
inputs: {images: /data/images, "0.old_labels-2": /data/labels.csv}
outputs: ["*.pt", logs/**/*.csv]
network: true
"""
    spec = parse_task(raw, "x.yaml").spec
    assert spec.run == ("python", "train.py", "--epochs", "3")
    assert (spec.env, spec.workdir) == ({"EPOCHS": "3", "_a1": ""}, "/data/code")
    assert spec.inputs == {"images": "/data/images", "0.old_labels-2": "/data/labels.csv"}
    assert (spec.outputs, spec.network) == (("*.pt", "logs/**/*.csv"), True)
    assert spec.warnings() == []


def test_a_command_needs_no_more_than_what_to_run() -> None:
    spec = parse_task(b"kind: command\nrun: |\n  cd /tmp\n  ls\n", "x.yaml").spec
    assert spec.run == "cd /tmp\nls\n"
    assert (spec.env, spec.workdir, spec.inputs, spec.network) == ({}, None, {}, False)
    assert spec.outputs == ("**",)


@pytest.mark.parametrize(
    ("text", "by_llm"),
    [
        ("template: digits", False),
        ("template: digits\nresearcher: llm", True),
        ("template: digits\nmodel: qwen3:8b", True),
        ("template: digits\nmodel: {code: qwen3:8b}", True),
        ("template: digits\nmodel: {review: [qwen3:8b, gemma3:4b]}", True),
        ("template: digits\nmodel: qwen3:8b\nresearcher: sweep", False),
        ("kind: prompts\ninput: a.jsonl\nmodel: qwen3:8b", False),
    ],
)
def test_who_names_a_model_or_says_so_has_a_model_do_the_research(
    *, text: str, by_llm: bool
) -> None:
    spec = parse_task(text.encode(), "x.yaml").spec
    assert spec.by_llm is by_llm
    assert spec.asks_models is (by_llm or spec.kind == "prompts")


@pytest.mark.parametrize(
    ("said", "seconds"), [("30m", 1800), ("0", 0), ("null", 0), ("'0'", 0), ("90", 90)]
)
def test_how_long_nothing_may_move_is_a_duration_or_no_limit(said: str, seconds: float) -> None:
    assert (
        parse_task(f"template: x\nstuck_after: {said}".encode(), "x").spec.stuck_after == seconds
    )
    assert parse_task(b"template: x", "x").spec.stuck_after is None, "as the settings say"


def test_a_seed_in_a_command_is_said_to_have_no_effect() -> None:
    spec = parse_task(b"kind: command\nrun: ls\nseed: 0\n", "x.yaml").spec
    assert spec.warnings() == ["seed: has no effect in a command"]


@pytest.mark.parametrize("kind", ["template: digits", "kind: command\nrun: ls"])
def test_labels_after_and_not_before_are_for_every_kind(kind: str) -> None:
    said = "labels: [night, a.b_c/d:e-1, night]\nafter: [one.yaml, two, one, a.b.yml]\nnot_before: 2026-11-23T08:00:00+09:00\n"
    spec = parse_task(f"{kind}\n{said}".encode(), "x.yaml").spec
    assert spec.labels == ("night", "a.b_c/d:e-1")
    assert spec.after == ("one", "two", "a.b")
    assert spec.not_before == datetime(2026, 11, 22, 23, tzinfo=UTC)


def test_one_text_is_a_list_of_one() -> None:
    spec = parse_task(
        b"kind: command\nrun: ls\nlabels: night\nafter: one\noutputs: a/*\n", "x.yaml"
    ).spec
    assert (spec.labels, spec.after, spec.outputs) == (("night",), ("one",), ("a/*",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run: true", "found True; wanted: a text, in quotes"),
        ("run: [a, 3]", "x.yaml:2:10: run.1: found 3; wanted: a text, in quotes"),
        ("run: []", "wanted: a list of one to 1000 texts"),
        ("run: ['', a]", "wanted: a list of one to 1000 texts, the first not empty"),
        ("run: '  '", "wanted: a command"),
        ('run: "a\\0b"', "a text without NUL"),
        (f"run: {'x' * 60_001}", "at most 60000 bytes"),
        ("env: {1A: a}", "x.yaml:2:7: env.1A"),
        ("env: {A-B: a}", "wanted: a variable's name"),
        ("env: {LABD_TASK: a}", "labd sets this variable itself"),
        ("env: {LABD_: a}", "labd sets this variable itself"),
        ("env: {CUDA_VISIBLE_DEVICES: '0'}", "labd sets this variable itself"),
        ("env: {IFS: a}", "this variable is the shell's own"),
        ("run: [-c, a]", "without - in front"),
        ("env: {A: 3}", "x.yaml:2:7: env.A: found 3; wanted: a text, in quotes"),
        ('env: {A: "a\\0b"}', "a text without NUL"),
        ("env: {" + ", ".join(f"A{i}: a" for i in range(201)) + "}", "at most 200"),
        ("workdir: data", "wanted: an absolute path"),
        ("inputs: {a/b: /x}", "a name of letters, digits"),
        ("inputs: {..: /x}", "a name of letters, digits"),
        ("inputs: {a: x}", "x.yaml:2:10: inputs.a: found 'x'; wanted: an absolute path"),
        ("outputs: []", "a list of one to 100 texts"),
        ("outputs: /a", "a relative pattern without .."),
        ("outputs: [a, b/../../c]", "x.yaml:2:14: outputs.1"),
        ("outputs: .", "a relative pattern without .."),
        ("network: yes", "found 'yes'; wanted: true or false"),
        ("network: 1", "found 1; wanted: true or false"),
        ("labels: [a b]", "x.yaml:2:10: labels.0: found 'a b'; wanted: a label"),
        ("labels: [3]", "found 3; wanted: a text, in quotes"),
        (f"labels: [{', '.join(f'a{i}' for i in range(21))}]", "at most 20"),
        ("after: ../x", "wanted: a task's id"),
        ("after: .x", "wanted: a task's id"),
        ('after: "a\\nb"', "wanted: a task's id"),
        ("after: [007]", "found 7; wanted: a text, in quotes"),
        (f"after: [{', '.join(f'a{i}' for i in range(101))}]", "at most 100"),
        ("not_before: 2026-11-23T08:00:00", "this one has no zone"),
        ("not_before: 2026-11-23", "this one has no zone"),
        ("not_before: tomorrow", "wanted: a time with its zone, such as 2026-11-23T08:00:00+09:00"),
        ("not_before: 20261123", "wanted: a time with its zone"),
        ("not_before: 0001-01-01T00:00:00+09:00", "wanted: a time with its zone"),
    ],
)  # fmt: skip
def test_bad_values_of_a_command_are_refused_with_their_line(line: str, said: str) -> None:
    text = f"kind: command\n{line}\n" + ("" if line.startswith("run:") else "run: ls\n")
    told = problems(text)
    assert told.startswith("x.yaml:2:")
    assert said in told
    assert "\n" not in told


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
