"""Models and experiments on a real GPU: a model's memory is really free before an experiment starts.

Needs an NVIDIA GPU; skipped where there is none, and failing there with LABD_REQUIRE_GPU=1.
"""

import os
import threading
import time

import pytest

from labd.llm.errors import MemoryHeld
from labd.llm.model import Message, Options
from labd.llm.vram import VramWatch, watching
from labd.nvml import open_nvml
from tests.servers.fixtures import running_ollama
from tests.test_llm_pool import brokered, endpoint, pool

SIZE_BYTES = 24 * 2**30
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    nvml = open_nvml()
    seen = nvml is not None and nvml.nvmlDeviceGetCount() > 0
    if not seen and os.environ.get("LABD_REQUIRE_GPU") == "1":
        pytest.fail("NVML sees no GPU, and LABD_REQUIRE_GPU is set")
    if not seen:
        pytest.skip("NVML sees no GPU")


def used_bytes() -> int:
    with watching() as vram:
        return vram.used_bytes()


def test_a_models_memory_is_free_when_the_experiment_starts_and_taken_again_after_it() -> None:
    options = Options("alpha", num_ctx=2048, num_predict=16, allow_cut=True)
    hello = [Message("user", "hello")]
    before = used_bytes()
    with (
        running_ollama(f"--model=alpha,vram={SIZE_BYTES}", "--cuda") as node,
        brokered(endpoint(node)) as call,
        pool(call, "llm") as llm,
        pool(call, "experiment") as experiment,
    ):
        for round_ in range(3):
            llm.chat(hello, options)
            loaded = used_bytes()
            assert loaded - before >= SIZE_BYTES
            waiting = threading.Thread(target=llm.chat, args=(hello, options))
            began_s = time.monotonic()
            with experiment.gpus([0], limit_s=60):
                inside = used_bytes()
                print(
                    f"round {round_}: {loaded >> 20} MiB in use with the model, {inside >> 20} MiB in the"
                    f" experiment, which had the GPU {time.monotonic() - began_s:.2f} s after it asked"
                )
                assert inside - before < SIZE_BYTES / 10
                waiting.start()
                time.sleep(0.5)
                assert (
                    used_bytes() - before < SIZE_BYTES / 10
                )  # the request that waits loads nothing
            waiting.join(60)
            assert not waiting.is_alive()


def test_memory_that_stays_taken_is_waited_for_and_then_told() -> None:
    watch = VramWatch()
    with pytest.raises(MemoryHeld, match="graphics memory are in use"):
        watch.wait_until_freed(SIZE_BYTES, timeout_s=1.0)
    watch.close()
