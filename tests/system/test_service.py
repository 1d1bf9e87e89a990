"""labd under a real systemd: installed, started, restarted, hung, killed, without power, and taken away again.

One box for all of them, in this order. `LABD_TORTURE=1` runs those that take longer too.
"""

import os
from collections.abc import Iterator

import pytest

from tests.processes import wait_until
from tests.system.installed import RESULTS, SPOOL, STEADY, Installed, why_not_installed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("system"),
]
torture = pytest.mark.skipif(
    not os.environ.get("LABD_TORTURE"), reason="takes longer: LABD_TORTURE=1 (make torture)"
)
CUTS = 8 if os.environ.get("LABD_TORTURE") else 1


@pytest.fixture(scope="module")
def lab() -> Iterator[Installed]:
    if reason := why_not_installed():
        pytest.skip(reason)
    lab = Installed("labdtest", disk_mib=384, watchdog_s=4)
    yield lab
    lab.box.remove()


def test_a_member_of_the_group_drops_a_task_and_finds_its_results(lab: Installed) -> None:
    lab.start()
    assert lab.drop("first", "echo hello") == 0
    assert lab.drop("strange", "echo hello", user="eve") != 0
    lab.wait("first", "done")
    assert lab.box.run("cat", f"{RESULTS}/first/log.txt", user="bob").stdout == "hello\n"
    assert lab.state("strange") == ""
    assert "done" in lab.labd("show", "first", user="bob")
    assert "adduser" in lab.labd("list", user="eve")


def test_the_weekly_report_is_written_for_the_group_and_its_timer_is_on(lab: Installed) -> None:
    lab.start()
    lab.drop("told", "echo hello")
    lab.wait("told", "done")
    lab.box.run("systemctl", "start", "labd-report.service")
    [name] = lab.box.sh("ls /var/lib/labd/reports").split()
    page = lab.box.run("cat", f"/var/lib/labd/reports/{name}", user="bob").stdout
    assert "What the lab did" in page
    assert "<svg" in page
    assert lab.box.run("ls", "/var/lib/labd/reports", user="eve", check=False).returncode != 0
    lab.box.run("systemctl", "start", "labd.target")
    assert "labd-report.timer" in lab.box.sh("systemctl list-timers --no-legend labd-report.timer")


def test_the_doctor_is_content_with_what_was_installed(lab: Installed) -> None:
    lab.start()
    nodes = wait_until(lambda: [n for n in lab.nodes() if n["machine"]], 60, "what it is")
    assert nodes[0]["name"] == lab.box.name
    told = {finding["name"]: finding for finding in lab.doctor()}
    bad = [f for f in told.values() if f["level"] in {"warning", "failing"}]
    assert [f["name"] for f in bad if not f["name"].startswith(("disk", "boot"))] == []
    for name in (
        "labd.service",
        "labd-ray.service",
        "drop",
        "ray address",
        f"node {lab.box.name}",
    ):
        assert told[name]["level"] == "ok", told[name]
    assert told["ports"]["level"] == "ok"


def test_secrets_reach_rays_workers_and_nobody_else(lab: Installed) -> None:
    lab.start()
    token = lab.box.sh("cat /etc/labd/ray.token")
    pid = lab.box.sh("pgrep -f 'raylet/rayle[t]'").split()[0]
    environment = lab.box.run("cat", f"/proc/{pid}/environ").stdout
    assert "RAY_AUTH_TOKEN_PATH=/run/credentials/labd-ray.service/ray.token" in environment
    assert token not in environment
    assert lab.box.run("cat", "/run/credentials/labd-ray.service/key_studio", user="labd").stdout == "sesame\n"  # fmt: skip
    for path in ("/etc/labd/ray.token", "/etc/labd/keys/studio", "/run/credentials/labd-ray.service/key_studio"):  # fmt: skip
        assert lab.box.run("cat", path, user="bob", check=False).returncode != 0
    lab.drop("thief", "cat /run/credentials/*/* /etc/labd/* /proc/*/environ; echo looked")
    lab.wait("thief", "done")
    assert not {token, "sesame"} & set(lab.box.sh(f"cat {RESULTS}/thief/log.txt").split())
    assert "looked" in lab.box.sh(f"cat {RESULTS}/thief/log.txt")
    assert token not in lab.box.run("journalctl", "--no-pager").stdout


def test_who_may_cancel_or_retry_a_task_is_its_owner_and_labd(lab: Installed) -> None:
    lab.start()
    lab.drop("mine", STEADY)
    lab.wait_beats("mine")
    for move in (f"mv {SPOOL}/running/mine.yaml {SPOOL}/cancelled/", f"rm -f {SPOOL}/running/mine.yaml", "labd cancel mine"):  # fmt: skip
        assert lab.box.run("sh", "-c", move, user="bob", check=False).returncode != 0
        assert lab.state("mine") == "running"
    lab.box.run("labd", "cancel", "mine", user="alice")
    wait_until(lambda: lab.story("mine") == ["claimed", "cancelled"], 30, "its end on record")


def test_the_journal_tells_of_a_task_by_its_id(lab: Installed) -> None:
    lab.start()
    lab.drop("noted", "true")
    lab.wait("noted", "done")
    told = wait_until(lambda: lab.journal("-u", "labd", "LABD_TASK_ID=noted"), 10, "entries")
    assert [entry["LABD_EVENT"] for entry in told] == ["task.claimed", "task.finished"]
    assert told[1]["MESSAGE"].startswith("task.finished task_id=noted")
    assert told[1]["SYSLOG_IDENTIFIER"] == "labd"
    assert "noted" in lab.box.run("journalctl", "-u", "labd", "-g", "noted").stdout


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("restarted", "systemctl restart labd"),
        pytest.param("killed", "kill -9 {pid}", marks=torture),
        ("hung", "kill -STOP {pid}"),
    ],
)
def test_running_work_lives_on_when_the_daemon_is_restarted_killed_or_hangs(
    lab: Installed, task: str, how: str
) -> None:
    lab.start()
    lab.drop(task, STEADY)
    lab.wait_beats(task)
    pid = lab.box.main_pid("labd")
    lab.box.sh(how.format(pid=pid))
    wait_until(lambda: lab.box.main_pid("labd") not in {0, pid}, 30, "another daemon")
    lab.wait_ready()
    lab.wait_beats(task, lab.beats(task) + 2)
    lab.let_end(task)
    lab.wait(task, "done")
    assert lab.story(task) == ["claimed", "done"]
    if task == "hung":
        told = [str(entry.get("MESSAGE")) for entry in lab.journal("-u", "labd")]
        assert any("Watchdog timeout" in line for line in told)
        assert any("loop.py" in line and "in run" in line for line in told), "where it hung"


@torture
def test_a_worker_that_is_killed_costs_its_task_an_attempt(lab: Installed) -> None:
    lab.start()
    lab.drop("bereft", STEADY)
    lab.wait_beats("bereft")
    lab.box.sh("kill -9 $(pgrep -f '^ray::labd:beref[t]#1')")
    wait_until(lambda: lab.story("bereft").count("claimed") == 2, 60, "another attempt")
    lab.let_end("bereft")
    lab.wait("bereft", "done")
    assert lab.story("bereft") == ["claimed", "lost", "claimed", "done"]


@torture
@pytest.mark.parametrize("process", ["gcs_serve[r]", "raylet/rayle[t]"])
def test_a_ray_that_is_killed_is_started_again_and_its_work_too(
    lab: Installed, process: str
) -> None:
    lab.start()
    task = f"on-{process[:3]}"
    lab.drop(task, STEADY)
    lab.wait_beats(task)
    lab.box.sh(f"kill -9 $(pgrep -f {process})")
    wait_until(lambda: lab.story(task).count("claimed") == 2, 150, "another attempt")
    lab.let_end(task)
    lab.wait(task, "done", 150)
    assert lab.story(task).count("done") == 1


@torture
def test_a_full_disk_makes_tasks_wait_and_breaks_nothing(lab: Installed) -> None:
    lab.start()
    pid = lab.box.main_pid("labd")
    lab.drop("before", STEADY)
    lab.wait_beats("before")
    free_kib = int(lab.box.sh("df --output=avail /var/lib/labd | tail -1"))
    lab.box.sh(f"fallocate -l {free_kib - 4096}K /var/lib/labd/ballast")
    lab.drop("poor", "echo rich")
    wait_until(lambda: "disk space" in lab.labd("list"), 30, "the reason why it waits")
    lab.box.sh("dd if=/dev/zero of=/var/lib/labd/more bs=64K 2>/dev/null || true")
    seen = lab.beats("before")
    assert lab.state("poor") == "pending"
    lab.box.sh("rm /var/lib/labd/ballast /var/lib/labd/more")
    lab.wait("poor", "done")
    if lab.state("before") == "running":  # or it ended because it could not write
        lab.let_end("before")
    wait_until(lambda: lab.state("before") in {"done", "failed"}, 60, "the end of what ran")
    assert lab.story("before").count("claimed") == 1
    assert lab.beats("before") >= seen
    assert lab.box.main_pid("labd") == pid


def test_ten_tasks_all_end_and_none_twice_though_the_power_fails_among_them(
    lab: Installed,
) -> None:
    for cut in range(CUTS):
        lab.box.run("systemctl", "enable", "labd.target")
        lab.start()
        names = [f"cut{cut}-{number}" for number in range(10)]
        for number, name in enumerate(names):
            lab.drop(name, f"sleep 0.{number}", more="num_cpus: 1\n")
        # Whoever copies a file has not made it durable: that is the system's, within its half minute, or `sync`.
        lab.box.run("sync")
        wait_until(lambda names=names: sum(lab.state(n) == "done" for n in names) >= 4, 60, "four of ten")  # type: ignore[misc]  # fmt: skip
        before = {name: lab.events(name) for name in names if lab.state(name) == "done"}

        lab.box.cut()
        lab.box.boot()  # nobody starts labd: the machine does
        for name in names:
            lab.wait(name, "done", 120)
        for name in names:
            story = lab.story(name)
            assert story.count("done") == 1, story
            assert story[-1] == "done", story
            assert story.count("claimed") <= 2, story
        assert {name: lab.events(name) for name in before} == before


@torture
def test_an_upgrade_in_place_keeps_settings_and_running_work(lab: Installed) -> None:
    lab.start()
    lab.box.sh("echo '# mine' >> /etc/labd/labd.yaml")
    kept = "cat /etc/labd/labd.yaml /etc/labd/ray.env /etc/labd/ray.token"
    before, pid = lab.box.sh(kept), lab.box.main_pid("labd")
    lab.drop("through", STEADY)
    lab.wait_beats("through")
    lab.make("install")
    assert lab.box.sh(kept) == before
    assert lab.box.main_pid("labd") != pid
    lab.wait_ready()
    lab.let_end("through")
    lab.wait("through", "done")
    assert lab.story("through") == ["claimed", "done"]


def test_uninstalling_leaves_settings_tasks_and_results(lab: Installed) -> None:
    lab.start()
    lab.drop("lasting", "echo hello")
    lab.wait("lasting", "done")
    kept = f"cd /; find etc/labd {SPOOL[1:]}/[dpfc]* {RESULTS[1:]}/[a-z]* -type f | sort | xargs sha256sum"
    before = lab.box.sh(kept)
    for path in (
        "/etc/labd/labd.yaml",
        f"{SPOOL}/done/lasting.yaml",
        f"{RESULTS}/lasting/log.txt",
    ):
        assert path[1:] in before
    lab.make("uninstall")
    assert lab.box.sh(kept) == before
    assert not lab.box.exists("/opt/labd")
    assert lab.box.run("systemctl", "status", "labd", check=False).returncode == 4
    assert lab.box.sh("systemctl list-unit-files --no-legend 'labd*' || true") == ""
    assert lab.box.sh("pgrep -u labd || true") == ""
