"""Prompts: what a task of `kind: prompts` asks, and one attempt at having a model answer it.

`check_prompts` knows files only, for the drop; `labd.prompts.run` asks, for the worker.
"""

from labd.prompts.check import check_prompts

__all__ = ["check_prompts"]
