"""Commands: what a task of `kind: command` may name, and one run of it in the sandbox.

`check_command` knows files only, for the drop; `labd.command.run` needs the sandbox, for the worker.
"""

from labd.command.places import check_command

__all__ = ["check_command"]
