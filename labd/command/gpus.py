"""Which GPUs a command gets: their device nodes, and the names by which CUDA finds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from labd.nvml import open_nvml


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs as the sandbox and the command need them."""

    minors: tuple[int, ...] = ()
    """Numbers of the device nodes ``/dev/nvidia<n>``."""
    visible: str = ""
    """What CUDA_VISIBLE_DEVICES says."""


def find_gpus(indices: Sequence[int]) -> Gpus:
    """Give the GPUs that Ray names by index; without NVML, or where it knows no such GPU, by the indices themselves.

    UUIDs, because CUDA counts the GPUs that it can open: in a sandbox with some of the nodes the indices shift.

    Source: NVML API reference, nvmlDeviceGetMinorNumber ("the device node file ... /dev/nvidia[minor number]")
    and nvmlDeviceGetUUID; CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if not indices:
        return Gpus()
    nvml = open_nvml()
    if nvml is None:
        return _by_index(indices)
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
        return Gpus(
            tuple(nvml.nvmlDeviceGetMinorNumber(handle) for handle in handles),
            ",".join(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles),
        )
    except nvml.NVMLError:
        return _by_index(indices)
    finally:
        nvml.nvmlShutdown()


def _by_index(indices: Sequence[int]) -> Gpus:
    return Gpus(tuple(indices), ",".join(map(str, indices)))
