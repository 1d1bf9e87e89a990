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
from labd.campaigns.filling import Lab, arms_of, expected_gpu_hours, fill
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
    part_of_day,
)
from labd.campaigns.mix import (
    Outcome,
    Profile,
    learn,
    outcome_from_json,
    outcome_of,
    seed_for,
    shares_of,
)
from labd.campaigns.model import FILL, Campaign, Intensity, Step, parse_campaign
from labd.campaigns.readings import Endpoints, endpoints_of, load_of
from labd.campaigns.tasks import Draft, draft_name, drafts

__all__ = [
    "DECISIONS", "FILL", "LOCK", "MEMORY", "OUTCOMES",
    "BoundedLines", "Campaign", "Capacity", "Decision", "Draft", "Endpoints", "Intensity", "Lab", "Level", "Library", "Load", "Memory", "Note",
    "Outcome", "Profile", "Queue", "Remembered", "Room", "Step", "Thresholds", "adding", "arms_of", "begin", "classify",
    "decide", "draft_name", "drafts", "endpoints_of", "expected_gpu_hours", "fill", "learn", "load_of", "outcome_from_json",
    "outcome_of", "parse_campaign", "part_of_day", "read_campaign", "read_domains", "reported_since", "seed_for", "shares_of",
    "submit", "upcoming",
]  # fmt: skip
