"""Whether a sandboxed run gets the GPU that it was given and no other: for a machine with an NVIDIA GPU.

Needs Python 3.11 or later with torch, bubblewrap, and this repository; none of labd's own dependencies.

    python tests/gpu_check.py [--bwrap PATH] [--gpu MINOR]

Prints one line for each check, and at the end `ALL GOOD` or how many failed, which is the exit code as well.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from labd.sandbox import Ending, Limits, SandboxResult  # noqa: E402
from labd.sandbox.cgroup import find_base  # noqa: E402
from labd.sandbox.interpreter import interpreter  # noqa: E402
from tests.boxes import make_sandbox  # noqa: E402

LIMITS = Limits(wall_s=180, memory_bytes=16 * 2**30, processes=2048, disk_bytes=2**30)

DEVICES = "import os, json; print(json.dumps(sorted(n for n in os.listdir('/dev') if n.startswith('nvidia'))))"
NO_CUDA = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
MULTIPLY = """
import torch, json
assert torch.cuda.is_available(), "no CUDA"
torch.manual_seed(0)
a = torch.randn(1024, 1024, device="cuda", dtype=torch.float64)
b = torch.randn(1024, 1024, device="cuda", dtype=torch.float64)
error = (a @ b - (a.cpu() @ b.cpu()).cuda()).abs().max().item()
free, total = torch.cuda.mem_get_info()
print(json.dumps({"count": torch.cuda.device_count(), "name": torch.cuda.get_device_name(0), "error": error,
                  "total": total}))
"""
TRAIN = """
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)).cuda()
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
x = torch.randn(4096, 64, device="cuda"); y = x.sum(1, keepdim=True)
first = None
for step in range(200):
    loss = ((net(x) - y) ** 2).mean(); optimizer.zero_grad(); loss.backward(); optimizer.step()
    first = first or loss.item()
assert loss.item() < 0.5 * first, (first, loss.item())
loader = torch.utils.data.DataLoader(torch.arange(1000.0), batch_size=50, num_workers=2, pin_memory=True)
assert sum(batch.cuda().sum().item() for batch in loader) == 499500.0
print("trained")
"""
BENCH = """
import time, torch
a = torch.randn(4096, 4096, device="cuda", dtype=torch.float32)
for _ in range(10): b = a @ a
torch.cuda.synchronize()
begun = time.perf_counter()
for _ in range(100): b = a @ a
torch.cuda.synchronize()
print(time.perf_counter() - begun)
"""
HOG = """
import torch, os, time
kept = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
a = torch.randn(4096, 4096, device="cuda")
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
print("hogging", flush=True)
while True:
    a = a @ a
    a = a / a.norm()
"""
GREEDY = """
import torch
torch.ones(1, device="cuda")
kept = []
for _ in range(64):
    kept.append(torch.ones(1 << 28, dtype=torch.uint8))
print("held 16 GiB")
"""


class Machine:
    """What the checks need to know of this machine."""

    def __init__(self, bwrap: str, minor: int | None) -> None:
        self.minors = _minors()
        if not self.minors:
            raise SystemExit("no NVIDIA GPU here")
        self.minor = self.minors[0] if minor is None else minor
        self.box = make_sandbox(bwrap=bwrap)
        self.extra, self.path = _torch_place()

    def run(
        self, code: str, *, gpus: tuple[int, ...] = (), limits: Limits = LIMITS
    ) -> SandboxResult:
        with tempfile.TemporaryDirectory(prefix="labd-gpu-") as work:
            return self.box.run(
                ["python", "-c", code],
                workdir=Path(work),
                read_only=self.extra,
                env={"PYTHONPATH": self.path} if self.path else {},
                limits=limits,
                gpus=gpus,
            )

    def bare(self, code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=300
        ).stdout


def _minors() -> list[int]:
    found = []
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        number = re.search(r"Device Minor:\s*(\d+)", path.read_text())
        if number and Path(f"/dev/nvidia{number[1]}").exists():
            found.append(int(number[1]))
    # A container may have the nodes and not the list.
    nodes = [int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdecimal()]
    return sorted(found or nodes)


def _torch_place() -> tuple[dict[str, Path], str]:
    """Give how a run gets to see torch, where it doesn't lie in the interpreter's own place."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("no torch in this Python")
    site = Path(found.origin).resolve().parents[1]
    shown = [bind.source for bind in interpreter().binds]
    if site.is_relative_to("/usr") or any(site.is_relative_to(place) for place in shown):
        return {}, ""
    return {"/inputs/site": site}, "/inputs/site"


def check_host(machine: Machine) -> str:
    gaps = {gap.name: gap.what for gap in machine.box.gaps()}
    assert set(gaps) <= {"cgroup"}, gaps
    base = find_base()
    groups = {name: str(path) for name, path in base.controllers.items()}
    return f"gaps {gaps or 'none'}; groups of version 2 at {base.unified}; controllers {groups}"


def check_without_a_gpu_there_is_none(machine: Machine) -> str:
    assert json.loads(machine.run(DEVICES).output) == []
    result = machine.run(NO_CUDA)
    assert result.output.splitlines()[-1] == "False 0", result.output
    return "no node, no CUDA"


def check_only_the_given_gpu_is_there(machine: Machine) -> str:
    nodes = json.loads(machine.run(DEVICES, gpus=(machine.minor,)).output)
    numbered = [name for name in nodes if name[6:].isdecimal()]
    assert numbered == [f"nvidia{machine.minor}"], nodes
    return f"{nodes} of {machine.minors}"


def check_it_computes(machine: Machine) -> str:
    result = machine.run(MULTIPLY, gpus=(machine.minor,))
    assert result.exit_code == 0, result.output
    said = json.loads(result.output.splitlines()[-1])
    assert said["count"] == 1
    assert said["error"] < 1e-9
    return f"{said['name']}, error {said['error']:.1e}, {result.wall_s:.1f} s"


def check_it_trains_with_loader_workers_and_pinned_memory(machine: Machine) -> str:
    result = machine.run(TRAIN, gpus=(machine.minor,))
    assert result.output.splitlines()[-1:] == ["trained"], result.output
    return f"{result.wall_s:.1f} s"


def check_nvidia_smi(machine: Machine) -> str:
    code = "import subprocess; print(subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout)"
    result = machine.run(code, gpus=(machine.minor,))
    lines = [line for line in result.output.splitlines() if line.startswith("GPU ")]
    assert len(lines) <= 1, lines
    return lines[0].split(" (UUID")[0] if lines else "not there, which is no failure"


def check_speed(machine: Machine) -> str:
    inside, outside = [], []
    for _ in range(3):
        outside.append(float(machine.bare(BENCH).splitlines()[-1]))
        inside.append(float(machine.run(BENCH, gpus=(machine.minor,)).output.splitlines()[-1]))
    within, without = statistics.median(inside), statistics.median(outside)
    return f"100 products in {1000 * within:.1f} ms inside, {1000 * without:.1f} ms outside"


def check_a_killed_run_gives_the_gpus_memory_back(machine: Machine) -> str:
    before = _free_bytes(machine)
    begun = time.monotonic()
    result = machine.run(HOG, gpus=(machine.minor,), limits=replace(LIMITS, wall_s=20))
    assert result.ending is Ending.TIMED_OUT, result
    assert "hogging" in result.output, result.output
    over_s = time.monotonic() - begun - result.wall_s
    after = _free_bytes(machine)
    assert after > before - 2**28, (before, after)
    return (
        f"{before >> 20} MiB free before, {after >> 20} after; set-up and end took {over_s:.2f} s"
    )


def check_host_memory_is_limited_with_a_gpu_too(machine: Machine) -> str:
    limits = replace(LIMITS, memory_bytes=6 * 2**30)
    result = machine.run(GREEDY, gpus=(machine.minor,), limits=limits)
    assert result.ending is Ending.MEMORY_LIMIT, (result.ending, result.output[-500:])
    return f"{result.ending} at a peak of {(result.peak_memory_bytes or 0) >> 20} MiB"


def _free_bytes(machine: Machine) -> int:
    """Ask in a run of its own, once a driver that cleans up after a kill has had the time."""
    code = "import torch; print(torch.cuda.mem_get_info()[0])"
    found = 0
    for _ in range(3):
        result = machine.run(code, gpus=(machine.minor,))
        assert result.exit_code == 0, result.output
        found = max(found, int(result.output.splitlines()[-1]))
    return found


CHECKS: tuple[Callable[[Machine], str], ...] = (
    check_host,
    check_without_a_gpu_there_is_none,
    check_only_the_given_gpu_is_there,
    check_it_computes,
    check_it_trains_with_loader_workers_and_pinned_memory,
    check_nvidia_smi,
    check_speed,
    check_a_killed_run_gives_the_gpus_memory_back,
    check_host_memory_is_limited_with_a_gpu_too,
)


def main() -> int:
    """Run all checks; give how many failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bwrap", default="bwrap")
    parser.add_argument("--gpu", type=int)
    given = parser.parse_args()
    print(f"kernel {platform.release()}, Python {platform.python_version()}, uid {os.geteuid()}")
    # Some drivers make their nodes only when they are first used; a sandboxed run can't make them.
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], check=False, capture_output=True, timeout=60)
    machine = Machine(given.bwrap, given.gpu)
    failed = 0
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        begun = time.monotonic()
        try:
            said = check(machine)
            print(f"ok     {name}: {said} [{time.monotonic() - begun:.1f} s]", flush=True)
        except Exception:  # noqa: BLE001 - each check is tried, whatever became of the others
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
    print(f"{failed} FAILED" if failed else "ALL GOOD")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
