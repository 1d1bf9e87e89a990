"""Campaigns: what the lab does by itself, when, and how much of it.

Owns `config/campaigns/*.yaml`, their instants, the files that they put into the queue, and the adaptive queue. All
decisions are pure functions of what is remembered, what waits and runs, what the machines' load is, and `now`;
`labd.daemon.campaigning` carries them out.
"""

from labd.campaigns.domains import read_domains
from labd.campaigns.files import (
    DECISIONS,
    LOCK,
    MEMORY,
    OUTCOMES,
    BoundedLines,
    Library,
    Remembered,
    read_campaign,
    submit,
)
from labd.campaigns.filling import Lab, expected_gpu_hours, fill
from labd.campaigns.firing import (
    Decision,
    Memory,
    Note,
    Queue,
    adding,
    begin,
    decide,
    reported_since,
    upcoming,
)
from labd.campaigns.load import (
    Capacity,
    Level,
    Load,
    Room,
    Thresholds,
    classify,
    free_cpu_load,
)
from labd.campaigns.mix import Outcome, Profile, learn, outcome_from_json, outcome_of
from labd.campaigns.model import FILL, Campaign, Intensity, Step, parse_campaign
from labd.campaigns.tasks import Draft, draft_name, drafts

__all__ = [
    "DECISIONS", "FILL", "LOCK", "MEMORY", "OUTCOMES",
    "BoundedLines", "Campaign", "Capacity", "Decision", "Draft", "Intensity", "Lab", "Level", "Library", "Load", "Memory", "Note",
    "Outcome", "Profile", "Queue", "Remembered", "Room", "Step", "Thresholds", "adding", "begin", "classify",
    "decide", "draft_name", "drafts", "expected_gpu_hours", "fill", "free_cpu_load", "learn", "outcome_from_json",
    "outcome_of", "parse_campaign", "read_campaign", "read_domains", "reported_since", "submit", "upcoming",
]  # fmt: skip
