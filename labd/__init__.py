"""labd: a research lab that never stops, on the machines you own."""

__version__ = "0.1.0"
