"""Telling somebody what happened in the lab: a command of this machine, or a server (docs/operations.md).

Best effort, and never in the way: what sends has threads of its own, bounded in what it keeps, in how often it sends and in
how long it waits. Knows nothing of the spool, Ray or campaigns; `labd.daemon` says what happened.
"""

from labd.hooks.check import problems_of
from labd.hooks.notice import EVENTS, Event, Fact
from labd.hooks.sending import Hooks, Tried, shown_name, try_now

__all__ = ["EVENTS", "Event", "Fact", "Hooks", "Tried", "problems_of", "shown_name", "try_now"]
