"""What this machine is busy with just now: CPU, memory and GPUs, for people to look at."""

import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import psutil

from labd.text import printable


def load() -> dict[str, Any]:
    """Give ``cpu`` (share of all CPUs since the last call, 0 to 1), ``memory_bytes``, ``memory_used_bytes`` and ``gpus``.

    Each GPU has ``index``, ``name``, ``used`` (share of time, 0 to 1), ``vram_bytes``, ``vram_used_bytes`` and
    ``watts``; ``None`` for what the driver does not tell. Without NVML there are none.
    """
    memory = psutil.virtual_memory()
    return {
        "cpu": psutil.cpu_percent(interval=None) / 100,
        "memory_bytes": memory.total,
        "memory_used_bytes": memory.total - memory.available,
        "gpus": _gpus(),
    }


def _gpus() -> list[dict[str, Any]]:
    nvml = _nvml()
    if nvml is None:
        return []
    found: list[dict[str, Any]] = []
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            one: dict[str, Any] = {"index": index}
            for key, ask in _questions(nvml).items():
                one[key] = None
                with suppress(nvml.NVMLError):
                    one[key] = ask(handle)
            found.append(one)
    return found


def _questions(nvml: Any) -> dict[str, Any]:
    def name(handle: Any) -> str:
        told = nvml.nvmlDeviceGetName(handle)
        return printable(told.decode(errors="replace") if isinstance(told, bytes) else told, 100)

    return {
        "name": name,
        "used": lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "vram_bytes": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "vram_used_bytes": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "watts": lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }


@cache
def _nvml() -> Any:
    with warnings.catch_warnings():
        # It says that its code has moved to another package, which it brings along itself.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only where somebody looks at GPUs
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
