"""`config/domains.yaml`: what is expected of tasks before the lab has done any. Pure but for one read."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from labd.campaigns.mix import Profile, arm_of
from labd.errors import ConfigError
from labd.fields import Amount, Name, Seconds
from labd.text import printable
from labd.yamlfile import MAX_BYTES, InvalidFile, check, load_yaml


class Expected(BaseModel):
    """What is expected of one task of a domain's templates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    models: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """For these models only; empty: for all."""
    duration: Seconds = 1800.0
    success: Annotated[Amount, Field(ge=0, le=1)] = 0.8
    """The share of tasks that are done."""
    payoff: Annotated[Amount, Field(ge=0, le=2)] = 0.5
    """How much a task finds; see `labd.campaigns.mix`."""
    gpu_hours: Annotated[Amount, Field(ge=0)] = 0.0


class Domains(BaseModel):
    """All of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: Annotated[dict[Name, Expected], Field(max_length=1000)]


def read_domains(path: Path) -> dict[str, Profile]:
    """Give what is expected by arm, or by template where a domain names no models; nothing without a file.

    Raises:
        ConfigError: it can't be read or is not valid; every problem with file, line and column.

    """
    try:
        with path.open("rb") as file:
            said = check(Domains, load_yaml(file.read(MAX_BYTES + 1)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"it can't be read: {error.strerror}", where=str(path)) from error
    except InvalidFile as error:
        lines = [problem.located(printable(str(path))) for problem in error.problems[:20]]
        raise ConfigError("\n".join(lines)) from error
    seeds: dict[str, Profile] = {}
    for one in said.domains.values():
        profile = Profile(one.duration, one.success, one.payoff, one.gpu_hours)
        for template in one.templates:
            arms = [arm_of(template, model) for model in one.models] or [template]
            seeds.update(dict.fromkeys(arms, profile))
    return seeds
