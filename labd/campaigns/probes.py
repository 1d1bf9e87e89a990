"""What this machine's load is, as the kernel and NVML tell it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from labd.campaigns.load import Load, free_cpu_load
from labd.clock import from_iso, utc_now
from labd.nvml import open_nvml

_FRESH_S = 15.0
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


class Probe:
    """Reads the load of this machine. `disk` is a directory on the disk that fills up; `models_status` the broker's file."""

    def __init__(self, disk: Path, models_status: Path) -> None:
        self._disk, self._models_status = disk, models_status
        self._nvml = open_nvml()
        psutil.cpu_percent(None)  # the next call gives the mean since this one

    def read(self, given_cpus: float) -> tuple[Load, int | None]:
        """Give the load, and how many requests the endpoints of language models answer at once.

        `given_cpus`: how many of this machine's CPUs the lab's tasks hold. CPU is the mean since the last call.
        """
        busy = psutil.cpu_percent(None) / 100
        gpu, gpu_memory, gpu_c = self._gpus()
        temperatures = [t for t in (self._temperature_c(), gpu_c) if t is not None]
        queue, calls = self._endpoints()
        load = Load(
            cpu=free_cpu_load(busy, float(psutil.cpu_count() or 1), given_cpus),
            memory=psutil.virtual_memory().percent / 100,
            disk=psutil.disk_usage(str(self._disk)).percent / 100,
            gpu=gpu,
            gpu_memory=gpu_memory,
            temperature_c=max(temperatures, default=None),
            queue=queue,
        )
        return load, calls

    def close(self) -> None:
        """Ask NVML no more."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    @staticmethod
    def _temperature_c() -> float | None:
        chips = psutil.sensors_temperatures()
        found = [t.current for name in _CHIPS for t in chips.get(name, ()) if t.current]
        return max(found, default=None)

    def _gpus(self) -> tuple[float | None, float | None, float | None]:
        """Give use and memory in the mean of all GPUs, and the hottest one's temperature."""
        nvml = self._nvml
        if nvml is None:
            return None, None, None
        try:
            handles = [
                nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())
            ]
            if not handles:
                return None, None, None
            use = sum(nvml.nvmlDeviceGetUtilizationRates(h).gpu for h in handles)
            memory = [nvml.nvmlDeviceGetMemoryInfo(h) for h in handles]
            hottest = max(
                nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU) for h in handles
            )
        except nvml.NVMLError:
            return None, None, None
        held = sum(int(m.used) for m in memory) / sum(int(m.total) for m in memory)
        return use / (100 * len(handles)), held, float(hottest)

    def _endpoints(self) -> tuple[float | None, int | None]:
        """Give the requests that wait for each slot, and the slots of all endpoints that answer."""
        try:
            facts = json.loads(self._models_status.read_bytes())
            if (utc_now() - from_iso(facts["at"])).total_seconds() > _FRESH_S:
                return None, None
            return _queue(facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None, None


def _queue(facts: Mapping[str, Any]) -> tuple[float | None, int | None]:
    good = [e for e in facts["endpoints"] if e["health"] in {"up", "loading"}]
    slots = sum(int(endpoint["slots"]) for endpoint in good)
    if not slots:
        return None, None
    return sum(facts["waiting"].values()) / slots, slots
