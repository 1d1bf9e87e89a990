"""Three machines, each with a systemd, a disk and an Ollama-like server of its own: labd's, and two that work for it.

No file system in common. In order, on the same three; with `LABD_TORTURE=1` only.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import wait_until
from tests.system.box import SOURCE
from tests.system.installed import RESULTS, STEADY, Installed, why_not_installed
from tests.system.network import NETWORK, Switch

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("system"),
    pytest.mark.skipif(
        not os.environ.get("LABD_TORTURE"), reason="takes minutes: LABD_TORTURE=1 (make torture)"
    ),
]
_FENCE = f"[Service]\nIPAddressDeny=any\nIPAddressAllow=localhost {NETWORK}.0/24\n"
_MODEL = "--model=alpha,vram=8000000000"


class Lab3:
    """The head, `ada`, and the nodes `bob` and `cyd`, each with one GPU that Ray is told of."""

    def __init__(self) -> None:
        self.switch = Switch()
        self.head = Installed("ada")
        self.nodes = {"bob": Installed("bob"), "cyd": Installed("cyd")}
        self.number = {"ada": 1, "bob": 2, "cyd": 3}
        self.address = f"{NETWORK}.1:6399"
        token = self.head.box.sh("cat /etc/labd/ray.token")
        for name, one in self.all().items():
            one.write("/etc/systemd/system/labd-ray.service.d/fence.conf", _FENCE)
            one.write("/etc/systemd/system/labd-node.service.d/fence.conf", _FENCE)
            one.box.sh("cp /etc/systemd/system/labd-ray.service.d/test.conf /etc/systemd/system/labd-node.service.d/")  # fmt: skip
            one.write("/etc/labd/ray.token", token)
            self.plug(name)
        settings = self.head.box.sh("cat /etc/labd/labd.yaml").replace("127.0.0.1:6399", self.address)  # fmt: skip
        self.head.write("/etc/labd/labd.yaml", f"{settings}\nllm: {{model: alpha, turn: 1s}}\n")
        self.head.box.sh(f"sed -i s/^LABD_ADDRESS=.*/LABD_ADDRESS={NETWORK}.1/ /etc/labd/ray.env")
        for name, node in self.nodes.items():
            mine = f"LABD_HEAD={self.address}\nLABD_ADDRESS={NETWORK}.{self.number[name]}\nLABD_GPUS=1\nLABD_CPUS=2\n"  # fmt: skip
            node.write("/etc/labd/node.env", mine)

    def all(self) -> dict[str, Installed]:
        return {"ada": self.head, **self.nodes}

    def plug(self, name: str) -> None:
        """Connect a machine that has just been switched on, and start its server of language models."""
        one, number = self.all()[name], self.number[name]
        self.switch.plug(one.box, number)
        one.box.sh("systemctl daemon-reload")
        server = f"/opt/labd/bin/python -m tests.servers.ollama --host {NETWORK}.{number} --port 11434 {_MODEL}"
        one.box.sh(f"systemd-run -q --unit=ollama -p WorkingDirectory={SOURCE} {server}")

    def start(self) -> None:
        self.head.start()
        for node in self.nodes.values():
            node.box.sh("systemctl enable -q labd-node; systemctl start --no-block labd-node")

    def told(self) -> dict[str, dict[str, Any]]:
        """Give what `labd nodes` tells, by machine."""
        return {node["name"]: node for node in self.head.nodes() if node["name"]}

    def wait_nodes(self, *names: str, timeout_s: float = 120) -> dict[str, dict[str, Any]]:
        """Wait until these machines, and no others, are there and have said what they are."""

        def there() -> dict[str, dict[str, Any]]:
            told = self.told()
            good = {
                n for n, node in told.items() if node["machine"] and not node["machine"]["problem"]
            }
            return told if set(names) == good == set(told) else {}

        return wait_until(there, timeout_s, f"the machines {names}")

    def node_of(self, task: str) -> str:
        """Give the machine of a task's last claim."""
        wait_until(lambda: self.head.story(task)[-1:] == ["claimed"], 60, f"a claim of {task}")
        node_id = self.head.events(task)[-1]["node"]
        return next((name for name, node in self.told().items() if node["id"] == node_id), "")

    def run_on_gpu(self, task: str) -> str:
        """Have a command run on one of the GPUs, until it is told to end; give its machine."""
        self.head.drop(task, STEADY, more="num_gpus: 1\nmax_retries: 5\n")
        where = self.node_of(task)
        self.wait_beat(where, task)
        return where

    def wait_beat(self, where: str, task: str) -> None:
        """Wait until a command beats on a machine, where only that machine sees it."""
        beats = f"find /var/lib/labd/scratch -path '*{task}*' -name beats -newermt '-2 seconds'"
        box = self.nodes[where].box
        wait_until(lambda: box.sh(beats).strip(), 90, f"{task} at work on {where}")

    def let_end(self, where: str, task: str) -> None:
        """Have it end, and wait for its results at home."""
        find = f"find /var/lib/labd/scratch -path '*{task}*' -name beats"
        box = self.nodes[where].box
        for beats in box.sh(find).split():
            box.sh(f"touch {os.path.dirname(beats)}/stop")  # noqa: PTH120 - a text
        self.head.wait(task, "done", 120)
        assert self.head.beats(task) > 0

    def remove(self) -> None:
        for one in self.all().values():
            one.box.remove()
        self.switch.remove()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab3]:
    if reason := why_not_installed():
        pytest.skip(reason)
    lab = Lab3()
    lab.start()
    yield lab
    lab.remove()


def test_three_machines_join_and_say_what_they_are(lab: Lab3) -> None:
    told = lab.wait_nodes("ada", "bob", "cyd")
    assert [told[n]["num_gpus"] for n in ("ada", "bob", "cyd")] == [0, 1, 1]
    for node in told.values():
        assert node["machine"]["gaps"] == []
        assert abs(node["machine"]["clock_offset_s"]) < 2

    def seen() -> bool:
        return all([e["health"] for e in n["endpoints"]] == ["up"] for n in lab.told().values())

    wait_until(seen, 90, "an endpoint that is up on each")
    shown = lab.head.labd("nodes")
    assert "bob: 2 CPUs, 1 GPUs" in shown
    assert f"http://{NETWORK}.2:11434" in shown
    assert "no GPU seen" in shown


def test_prompts_are_answered_by_the_servers_of_all_machines(lab: Lab3) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    lines = "\n".join(f'"{n}"' for n in range(60))
    lab.head.write("/var/lib/labd/data/questions.jsonl", lines)
    lab.head.box.sh("chown labd:labd /var/lib/labd/data/questions.jsonl")
    text = "kind: prompts\ninput: questions.jsonl\noptions: {num_ctx: 2048, num_predict: 24, allow_cut: true}\n"
    lab.head.write("/var/lib/labd/spool/pending/ask.yaml", text)
    lab.head.box.sh("chown labd:labd /var/lib/labd/spool/pending/ask.yaml")
    lab.head.wait("ask", "done", 120)
    output = lab.head.box.sh(f"cat {RESULTS}/ask/output.jsonl")
    assert all(f'"endpoint": "{name}"' in output for name in ("ada", "bob", "cyd"))


def test_rays_ports_let_only_the_labs_own_network_through(lab: Lab3) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    # Another address on the same cable, as a machine that is none of the lab's would have.
    lab.nodes["bob"].box.sh("ip addr add 10.214.0.9/24 dev eth0")
    knock = (
        f"curl -sS -m 3 --http0.9 --interface {{}} -o /dev/null http://{NETWORK}.1:6399; echo $?"
    )
    assert lab.nodes["bob"].box.sh(knock.format(f"{NETWORK}.2")).strip() != "28"
    assert lab.nodes["bob"].box.sh(knock.format("10.214.0.9")).strip() == "28", "not dropped"
    assert [f["name"] for f in lab.head.doctor() if f["name"] == "ports: ray"] == []


def test_a_drained_machine_gets_no_work(lab: Lab3) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    lab.head.box.run("labd", "drain", "bob")
    assert "as root" in lab.head.labd("drain", "cyd", user="alice").lower()
    for number in range(2):
        assert lab.run_on_gpu(f"elsewhere{number}") == "cyd"
        lab.let_end("cyd", f"elsewhere{number}")
    lab.head.box.run("labd", "undrain", "bob")


def test_work_on_a_machine_that_is_cut_off_goes_on_elsewhere_and_the_machine_comes_back(
    lab: Lab3,
) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    where = lab.run_on_gpu("cut-off")
    other = ({"bob", "cyd"} - {where}).pop()
    lab.switch.cut(lab.number[where])
    wait_until(lambda: lab.head.story("cut-off").count("claimed") == 2, 120, "another attempt")
    assert lab.node_of("cut-off") == other
    lab.wait_beat(other, "cut-off")
    lab.let_end(other, "cut-off")
    assert lab.head.story("cut-off") == ["claimed", "lost", "claimed", "done"]
    lab.switch.heal(lab.number[where])
    lab.wait_nodes("ada", "bob", "cyd", timeout_s=180)


def test_work_on_a_machine_without_power_goes_on_elsewhere_and_the_machine_comes_back(
    lab: Lab3,
) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    where = lab.run_on_gpu("dark")
    other = ({"bob", "cyd"} - {where}).pop()
    lab.switch.cut(lab.number[where])
    lab.nodes[where].box.cut()
    wait_until(lambda: lab.head.story("dark").count("claimed") == 2, 120, "another attempt")
    lab.wait_beat(other, "dark")
    lab.let_end(other, "dark")
    lab.nodes[where].box.boot()
    lab.plug(where)
    lab.wait_nodes("ada", "bob", "cyd", timeout_s=180)


def test_a_restart_of_the_head_begins_work_again_and_the_machines_come_back(lab: Lab3) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    lab.run_on_gpu("again")
    lab.head.box.run("systemctl", "restart", "labd-ray")
    lab.wait_nodes("ada", "bob", "cyd", timeout_s=240)
    wait_until(lambda: lab.head.story("again").count("claimed") == 2, 120, "another attempt")
    where = lab.node_of("again")
    lab.wait_beat(where, "again")
    lab.let_end(where, "again")
    assert lab.head.story("again").count("done") == 1


def test_a_machine_with_another_labd_gets_no_work_and_is_told_what_to_do(lab: Lab3) -> None:
    lab.wait_nodes("ada", "bob", "cyd")
    bob = lab.nodes["bob"].box
    bob.sh("sed -i 's/__version__ = .*/__version__ = \"0.0.9\"/' /opt/labd/lib/python3*/site-packages/labd/__init__.py")  # fmt: skip
    bob.sh("systemctl restart labd-node")

    def problem() -> str:
        machine = (lab.told().get("bob") or {}).get("machine") or {}
        return str(machine.get("problem") or "")

    assert "0.0.9" in wait_until(problem, 120, "the mismatch")
    assert "make install" in lab.head.labd("nodes")
    assert lab.run_on_gpu("sound") == "cyd"
    lab.let_end("cyd", "sound")
    told = {f["name"]: f for f in lab.head.doctor()}
    assert told["node bob"]["level"] == "failing"


def test_a_machine_with_another_token_does_not_get_in(lab: Lab3) -> None:
    cyd = lab.nodes["cyd"].box
    cyd.sh(
        "systemctl stop labd-node; echo 0000000000000000000000000000000000000000 > /etc/labd/ray.token"
    )
    cyd.sh("systemctl start --no-block labd-node")
    wait_until(lambda: "cyd" not in lab.told(), 60, "its leave")
    refused = "journalctl --no-pager -u labd-node -g uthenticat -n 1 --since -60s"
    wait_until(
        lambda: cyd.run("sh", "-c", refused, check=False).returncode == 0, 120, "the refusal"
    )
    assert "cyd" not in lab.told()
