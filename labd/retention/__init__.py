"""What the lab keeps of tasks that have ended: compressed or pruned by the owner's rules, and never without one.

Knows files only: the spool's decided places and results/. Task files are never touched, and neither are ids.
"""

from labd.retention.clock import Reading, read_clocks, trust
from labd.retention.keeper import Done, Keeper
from labd.retention.rules import Action, Finished, Plan, Rule, decide

__all__ = [
    "Action",
    "Done",
    "Finished",
    "Keeper",
    "Plan",
    "Reading",
    "Rule",
    "decide",
    "read_clocks",
    "trust",
]
