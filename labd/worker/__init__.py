"""One attempt on its node: builds the tools, does the work, writes the result. Called by the engine, runs as well without Ray."""

from labd.worker.attempt import AHEAD, gaps, run, warm_up

__all__ = ["AHEAD", "gaps", "run", "warm_up"]
