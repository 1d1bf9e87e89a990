"""What this machine is and does right now: processors, memory, GPUs as NVML tells of them. Plain data, for readers.

`load` is for a page that asks again and again; `look` for other machines that ask now and then. Where there is no NVML,
or one that fails, there are no GPUs, and `look` says why.
"""

import os
import platform
import time
from contextlib import suppress
from functools import cache
from typing import Any

import psutil

from labd.nvml import load_nvml, open_nvml
from labd.text import printable

_MAX_PROCESSES = 50
_MAX_GPUS = 64


def look() -> dict[str, Any]:
    """Give the machine's facts: ``cpus``, ``load``, memory, ``gpus``, ``no_gpu`` (why there are none), and the time.

    Each GPU: ``index``, ``name``, ``memory_bytes``, ``used_bytes``, ``busy`` (0 to 1), ``temperature_c`` and its
    ``processes`` (``pid``, ``name``, ``used_bytes``). What NVML does not tell is ``None``.
    """
    memory = psutil.virtual_memory()
    found, reason = gpus()
    return {
        "unix_s": time.time(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2),
        "memory_bytes": int(memory.total),
        "memory_free_bytes": int(memory.available),
        "gpus": found,
        "no_gpu": reason,
    }


def gpus() -> tuple[list[dict[str, Any]], str]:
    """Give the GPUs that NVML knows, or none and why."""
    nvml = load_nvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"no GPU seen: {printable(str(error), 100)}"
    try:
        count = min(int(nvml.nvmlDeviceGetCount()), _MAX_GPUS)
        return [_gpu(nvml, index) for index in range(count)], "" if count else "no GPU seen"
    except nvml.NVMLError as error:
        return [], f"the driver answers with an error: {printable(str(error), 100)}"
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    told: dict[str, Any] = {
        "index": index,
        "name": printable(_text(nvml.nvmlDeviceGetName(handle)), 60),
        "memory_bytes": int(memory.total),
        "used_bytes": int(memory.used),
        "busy": None,
        "temperature_c": None,
        "processes": [],
    }
    # Not every device tells everything: a slice of one by MIG, for one, has no utilisation.
    with suppress(nvml.NVMLError):
        told["busy"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with suppress(nvml.NVMLError):
        sensor = nvml.NVML_TEMPERATURE_GPU
        told["temperature_c"] = int(nvml.nvmlDeviceGetTemperature(handle, sensor))
    with suppress(nvml.NVMLError):
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        told["processes"] = [_process(one) for one in running[:_MAX_PROCESSES]]
    return told


def _process(facts: Any) -> dict[str, Any]:
    used = facts.usedGpuMemory
    name = ""
    with suppress(psutil.Error):
        name = printable(psutil.Process(facts.pid).name(), 40)
    return {"pid": facts.pid, "name": name, "used_bytes": None if used is None else int(used)}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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


_nvml = cache(open_nvml)
