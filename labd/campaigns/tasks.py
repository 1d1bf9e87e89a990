"""The task files of a campaign: their names, which make firing twice impossible, and their bytes. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from labd.campaigns.model import Campaign, Step
from labd.scheduler import Demand
from labd.task import task_id


@dataclass(frozen=True, slots=True)
class Draft:
    """A task file that is to be put into pending/ under `name`, unless a task of this id was there before."""

    name: str
    text: str
    demand: Demand
    """What it asks a node for."""

    @property
    def id(self) -> str:
        """The task's id."""
        return task_id(self.name)


def draft_name(campaign: str, step: str, instant: datetime, number: int) -> str:
    """Give the file name of the `number`-th task, counted from 1, of what was due at an instant.

    It says nothing else, so that the same firing can't make a second task of any number.
    """
    at = instant.astimezone(UTC)
    parts = [campaign, *([step] if step else []), f"{at:%Y%m%dT%H%M%SZ}", str(number)]
    return "--".join(parts[:-1]) + f"-{parts[-1]}.yaml"


def drafts(
    campaign: Campaign, step: Step, instant: datetime, first: int = 0, most: int | None = None
) -> Sequence[Draft]:
    """Give the task files of a step's firing in order: `most` of them from the `first`-th on, counted from 0."""
    last = None if most is None else first + max(0, most)
    return [
        draft(campaign, step.name, instant, number, keys)
        for number, keys in enumerate(step.combinations[first:last], first + 1)
    ]


def draft(
    campaign: Campaign, step: str, instant: datetime, number: int, keys: Mapping[str, Any]
) -> Draft:
    """Give one task file."""
    # A value as JSON is YAML too, and means the same to every reader of either.
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items())
    why = f"# Of the campaign {campaign.name}{f', step {step}' if step else ''}.\n"
    name = draft_name(campaign.name, step, instant, number)
    return Draft(name, why + "".join(lines), demand_of(keys))


def demand_of(keys: Mapping[str, Any]) -> Demand:
    """Give what a task file of these keys asks a node for; prompts are for the lab's own machine."""
    at_home = keys.get("kind") == "prompts"
    return Demand(keys.get("num_cpus", 1.0), keys.get("num_gpus", 0.0), at_home=at_home)
