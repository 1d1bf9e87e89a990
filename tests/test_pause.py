"""Pausing dispatching, and another priority for a task that waits: as the daemon takes them."""

import os
from pathlib import Path

from labd.lab import Lab as People
from tests.factories import task_text
from tests.stepped import Lab


def command(**over: object) -> str:
    return task_text(kind="command", template=None, run="true", **over)


def test_a_paused_lab_starts_nothing_and_what_runs_goes_on(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        people = People(lab.home)
        lab.start()
        lab.path("pending/first.yaml").write_text(command())
        lab.settle()
        people.pause()
        lab.path("pending/second.yaml").write_text(command())
        lab.settle()
        assert lab.path("pending/second.yaml").exists()
        assert lab.path("running/first.yaml").exists()
        lab.engine.finish("first")
        lab.settle()
        assert lab.path("done/first.yaml").exists()
        lab.stop()
        lab.start()
        lab.settle()
        assert people.paused
        assert lab.path("pending/second.yaml").exists()
        assert "labd resume" in people.find("second").why
        people.resume()
        lab.settle()
        assert lab.path("running/second.yaml").exists()


def test_a_raised_task_starts_before_older_ones_with_the_new_file_s_bytes(tmp_path: Path) -> None:
    with Lab(tmp_path, num_cpus=1.0) as lab:
        people = People(lab.home)
        lab.start()
        people.pause()
        for number in range(3):
            path = lab.path(f"pending/t{number}.yaml")
            path.write_text(command())
            os.utime(path, ns=(1, 10**18 + number))
        lab.settle()
        people.set_priority("t2", 5)
        people.resume()
        lab.settle()
        assert [attempt.job.task_id for attempt in lab.engine.live()] == ["t2"]
        assert "priority: 5" in lab.path("running/t2.yaml").read_text()
