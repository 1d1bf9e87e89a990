"""The sandbox with a real GPU; skipped where there is none, unless LABD_REQUIRE_GPU=1 says that there must be."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU_THERE = (
    any(Path("/dev").glob("nvidia[0-9]*")) and importlib.util.find_spec("torch") is not None
)


@pytest.mark.gpu
@pytest.mark.sandbox
@pytest.mark.skipif(
    not GPU_THERE and os.environ.get("LABD_REQUIRE_GPU") != "1",
    reason="no NVIDIA GPU here, or no torch",
)
def test_a_sandboxed_run_gets_its_gpu_and_no_other() -> None:
    script = Path(__file__).parent / "gpu_check.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["ALL GOOD"], done.stdout + done.stderr
