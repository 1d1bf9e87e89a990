"""NVML, which says what NVIDIA GPUs there are and do; ``None`` where there is none."""

import warnings
from typing import Any


def open_nvml() -> Any:
    """Give NVML's functions, initialised, or ``None`` where this machine has none; shut down by the caller."""
    with warnings.catch_warnings():
        # It says that its code has moved to another package, which it brings along itself.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only where somebody asks for GPUs
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
