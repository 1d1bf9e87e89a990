"""One attempt on its node: builds the tools, does the work, writes the result. Called by the engine, runs as well without Ray."""

from labd.worker.attempt import AHEAD, gaps, run, saying, warm_up
from labd.worker.signs import attempts_here, reach, signs_of

__all__ = ["AHEAD", "attempts_here", "gaps", "reach", "run", "saying", "signs_of", "warm_up"]
