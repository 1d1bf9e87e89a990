"""NVML, which says what NVIDIA GPUs there are and do."""

import warnings
from typing import Any


def load_nvml() -> Any:
    """Give NVML's functions, not yet initialised; importing them takes a moment."""
    with warnings.catch_warnings():
        # It says that its code has moved to another package, which it brings along itself.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only where somebody asks for GPUs
    return pynvml


def open_nvml() -> Any:
    """Give NVML's functions, initialised, or ``None`` where this machine has none; shut down by the caller."""
    nvml = load_nvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
