"""What this machine is and does right now: processors, memory, disk, heat, GPUs as NVML tells of them. Plain data, for readers.

`load` is for a page that asks again and again; `look` for other machines that ask now and then. Where there is no NVML,
or one that fails, there are no GPUs, and `look` says why.
"""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from labd.nvml import load_nvml, open_nvml
from labd.text import printable

_MAX_PROCESSES = 50
_MAX_GPUS = 64
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


def look(disk: Path) -> dict[str, Any]:
    """Give the machine's facts: ``cpus``, ``load``, memory, ``gpus``, ``no_gpu`` (why there are none), and the time.

    ``cpu_busy_s`` and ``cpu_all_s`` are sums over all CPUs since the machine started, as `cpu_share` compares them;
    ``disk_used`` is a share from 0 to 1, ``temperature_c`` that of the hottest CPU, ``None`` where nothing says it.

    Each GPU: ``index``, ``name``, ``memory_bytes``, ``used_bytes``, ``busy`` (0 to 1), ``temperature_c``, ``slowdown_c``
    (from where on it slows itself down for heat) and its ``processes`` (``pid``, ``name``, ``used_bytes``). What NVML does not tell is ``None``.

    Args:
        disk: a directory on the disk that fills up; where it does not exist yet, the nearest above it that does.

    """
    memory = psutil.virtual_memory()
    found, reason = gpus()
    busy_s, all_s = _cpu_times_s()
    return {
        "unix_s": time.time(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2),
        "cpu_busy_s": busy_s,
        "cpu_all_s": all_s,
        "memory_bytes": int(memory.total),
        "memory_free_bytes": int(memory.available),
        "disk_used": _disk_used(disk),
        "temperature_c": _temperature_c(),
        "gpus": found,
        "no_gpu": reason,
    }


def cpu_share(before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    """Give the busy share of all CPUs between two looks at one machine, from 0 to 1; ``None`` where it can't be told."""
    all_s = now["cpu_all_s"] - before["cpu_all_s"]
    if all_s <= 0:  # at once, or the machine has started anew
        return None
    return float(min(1.0, max(0.0, (now["cpu_busy_s"] - before["cpu_busy_s"]) / all_s)))


def _cpu_times_s() -> tuple[float, float]:
    """Give for how long all CPUs together have worked, and existed. A guest's time is in that of its user already."""
    times = psutil.cpu_times()
    all_s = sum(times) - times.guest - times.guest_nice
    return all_s - times.idle - times.iowait, all_s


def _disk_used(disk: Path) -> float | None:
    there = next(path for path in (disk, *disk.parents) if path.exists())
    try:
        return float(psutil.disk_usage(str(there)).percent / 100)
    except OSError:
        return None


def _temperature_c() -> float | None:
    chips = psutil.sensors_temperatures()
    found = [one.current for name in _CHIPS for one in chips.get(name, ()) if one.current]
    return max(found, default=None)


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
        "slowdown_c": None,
        "processes": [],
    }
    # Not every device tells everything: a slice of one by MIG, for one, has no utilisation.
    with suppress(nvml.NVMLError):
        told["busy"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with suppress(nvml.NVMLError):
        sensor = nvml.NVML_TEMPERATURE_GPU
        told["temperature_c"] = int(nvml.nvmlDeviceGetTemperature(handle, sensor))
    with suppress(nvml.NVMLError):
        slows_at = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        told["slowdown_c"] = int(nvml.nvmlDeviceGetTemperatureThreshold(handle, slows_at))
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
