"""One attempt on its node: builds the tools, does the work, writes the result. Called by the engine, runs as well without Ray."""

from labd.worker.attempt import AHEAD, run, warm_up

__all__ = ["AHEAD", "run", "warm_up"]
