"""Limits as people write them: sizes, defaults, ceilings, and what is told at the drop."""

from pathlib import Path

import pytest

from labd.drop import check_drop
from labd.errors import ConfigError, TaskFileError
from labd.limits import TaskLimits, settled
from labd.settings import Home, SandboxSettings, load_home
from labd.task import parse_task

GIB = 2**30


def home_with(root: Path, settings: str) -> Home:
    (root / "config").mkdir()
    (root / "config" / "labd.yaml").write_text(settings)
    return load_home(root)


def drop(home: Home, limits: str, *, rest: str = "") -> None:
    text = f"kind: command\nrun: 'true'\nlimits: {limits}\n{rest}"
    check_drop(parse_task(text.encode(), "x.yaml"), "x.yaml", home)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("8GiB", 8 * GIB), ("500MB", 500_000_000), (2**28, 2**28), ("1.5 GiB", 3 * GIB // 2)],
)
def test_a_size_is_a_number_of_bytes_or_has_its_unit(written: object, meant: int) -> None:
    assert TaskLimits.model_validate({"memory": written}).memory == meant


@pytest.mark.parametrize(
    "limits",
    [
        "{memory: much}",
        "{memory: -8GiB}",
        "{memory: 1.5}",
        "{memory: true}",
        "{memory: 1KiB}",
        "{processes: 2}",
        "{processes: '64'}",
        "{cpus: 0}",
        "{cpus: .inf}",
        "{cpu_time: 0s}",
        "{ram: 8GiB}",
        "8GiB",
    ],
)
def test_what_is_no_limit_is_refused_with_its_place(limits: str) -> None:
    with pytest.raises(TaskFileError, match=r"x.yaml:3:\d+: limits"):
        parse_task(f"kind: command\nrun: 'true'\nlimits: {limits}\n".encode(), "x.yaml")


def test_a_task_may_ask_for_less_and_up_to_the_ceiling_and_no_more(tmp_path: Path) -> None:
    home = home_with(
        tmp_path, "sandbox: {memory_bytes: 4GiB, at_most: {memory: 8GiB, timeout: 1h}}"
    )
    drop(home, "{memory: 1GiB}")
    drop(home, "{memory: 8GiB, disk: 2GiB}", rest="timeout: 1h")
    with pytest.raises(TaskFileError) as refused:
        drop(home, "{memory: 9GiB,\n  disk: 3GiB}", rest="timeout: 2h")
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["limits.memory", "limits.disk", "timeout"]
    assert "x.yaml:3:" in lines[0]
    assert "x.yaml:4:" in lines[1]
    assert "found 9GiB; wanted: at most 8GiB, or `at_most: {memory: 9GiB}`" in lines[0]


def test_without_a_ceiling_the_defaults_are_one(tmp_path: Path) -> None:
    home = home_with(tmp_path, "spool: spool")
    drop(home, "{memory: 4GiB, processes: 256, cpus: 2.5, cpu_time: 3h}")
    with pytest.raises(TaskFileError, match=r"limits.processes: found 257"):
        drop(home, "{processes: 257}")


def test_what_runs_has_the_tasks_limits_and_never_more_than_the_ceiling() -> None:
    caps = SandboxSettings.model_validate(
        {"at_most": {"memory": "8GiB", "cpus": 2}, "cpu_time": "1h"}
    ).model_dump(mode="json")
    usual = settled(caps, TaskLimits())
    assert (usual["memory_bytes"], usual["cpus"], usual["cpu_time"]) == (4 * GIB, 2, 3600)
    # A task file that came past the drop, because the settings were other ones then.
    asked = TaskLimits.model_validate({"memory": "64GiB", "cpus": 1, "cpu_time": "2h"})
    mine = settled(caps, asked)
    assert (mine["memory_bytes"], mine["cpus"], mine["cpu_time"]) == (8 * GIB, 1, 3600)
    assert isinstance(mine["memory_bytes"], int)


def test_a_gap_that_nobody_knows_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="such as cgroup; 'cgroups' is none"):
        home_with(tmp_path, "sandbox: {allow_missing: [seccomp, cgroups]}")


@pytest.mark.parametrize(
    "text", ["template: digits\nresearcher: llm\n", "kind: prompts\ninput: q.jsonl\n"]
)
def test_a_task_that_asks_a_model_says_which_or_the_settings_do(tmp_path: Path, text: str) -> None:
    home = home_with(tmp_path, "spool: spool")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "q.jsonl").write_text('"Why?"\n')
    with pytest.raises(TaskFileError, match=r"x.yaml:\d:1: model: neither .*`llm: {model: …}`"):
        check_drop(parse_task(text.encode(), "x.yaml"), "x.yaml", home)
    check_drop(parse_task(f"{text}model: m\n".encode(), "x.yaml"), "x.yaml", home)
    (tmp_path / "config" / "labd.yaml").write_text("llm: {model: m}")
    check_drop(parse_task(text.encode(), "x.yaml"), "x.yaml", load_home(tmp_path))
