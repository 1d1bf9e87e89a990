"""Graphics memory of this machine, as NVML tells it: how much is in use, and waiting until some of it is free again."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labd.llm.errors import MemoryHeld
from labd.nvml import open_nvml
from labd.text import printable

_SAMPLE_EVERY_S = 0.25
_FREE_TIMEOUT_S = 60.0
_SHARE_FREED = 0.8
_TRIFLE_BYTES = 64 * 2**20


class VramWatch:
    """Remembers the most graphics memory that was in use since it was made. Sees nothing where there is no NVML."""

    def __init__(self) -> None:
        self._most_bytes = 0
        self._closed = threading.Event()
        self._nvml = open_nvml()
        self._sample()
        if self._nvml is not None:
            threading.Thread(target=self._go_on, name="vram", daemon=True).start()

    def used_bytes(self) -> int:
        """Give how much of all devices' memory is in use now; 0 where nobody can tell."""
        nvml = self._nvml
        if nvml is None:
            return 0
        try:
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
        except nvml.NVMLError:
            return 0

    def wait_until_freed(self, freed_bytes: int, timeout_s: float = _FREE_TIMEOUT_S) -> float:
        """Wait until what servers say that they gave back is really free; give how long that took in seconds.

        Four fifths of it are enough, because what servers say is an estimate.

        Raises:
            MemoryHeld: it is not free in time.

        """
        began_s = time.monotonic()
        if self._nvml is None or freed_bytes < _TRIFLE_BYTES:
            return 0.0
        wanted = self._most_bytes - int(_SHARE_FREED * freed_bytes)
        while (used := self.used_bytes()) > wanted:
            if time.monotonic() - began_s > timeout_s:
                raise MemoryHeld(
                    f"{used >> 20} MiB of graphics memory are in use {timeout_s:g} s after the models"
                    f" were unloaded, wanted {wanted >> 20} at most; held by: {self._holders()}",
                    fix="Stop what else uses these GPUs, or restart the server of language models",
                )
            time.sleep(_SAMPLE_EVERY_S / 5)
        return time.monotonic() - began_s

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _go_on(self) -> None:
        while not self._closed.wait(_SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        self._most_bytes = max(self._most_bytes, self.used_bytes())

    def _holders(self) -> str:
        nvml = self._nvml
        if nvml is None:
            return "unknown"
        told = []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                told += [f"process {p.pid} ({(p.usedGpuMemory or 0) >> 20} MiB)" for p in found]
        except nvml.NVMLError as error:
            return printable(str(error), 100)
        return ", ".join(told[:8]) or "no process that can be seen from here"


@contextmanager
def watching() -> Iterator[VramWatch]:
    """Watch the graphics memory while the block runs."""
    watch = VramWatch()
    try:
        yield watch
    finally:
        watch.close()
