"""What someone needs to do a task again: versions, hashes and seeds. Recorded once, by the first attempt."""

import importlib.metadata
import platform
from collections.abc import Sequence

from labd import __version__
from labd.clock import utc_now
from labd.research.record import Provenance
from labd.research.search import derive_seed
from labd.template import Template

_PACKAGES = ("matplotlib", "numpy", "optuna", "scikit-learn", "scipy")
_SEARCH, _TRIAL, _CONFIRM = 0, 1, 2


def fresh_provenance(
    template: Template, *, seed: int, num_confirm_seeds: int, task_text: str, task_sha256: str
) -> Provenance:
    """Give the provenance of a task that starts now, with all its seeds derived from `seed`.

    The seeds that confirm differ from each other and from the one that the trials share.
    """
    trial_seed = derive_seed(seed, _TRIAL)
    return Provenance(
        labd_version=__version__,
        python_version=platform.python_version(),
        platform=platform.platform(),
        packages=_versions(template.requirements),
        template=template.name,
        template_sha256=template.sha256,
        files_sha256=dict(template.files_sha256),
        command=list(template.command),
        search_seed=derive_seed(seed, _SEARCH),
        trial_seed=trial_seed,
        confirm_seeds=_confirm_seeds(seed, num_confirm_seeds, trial_seed),
        started_on=utc_now().date().isoformat(),
        task_file=task_text,
        task_sha256=task_sha256,
    )


def _confirm_seeds(seed: int, count: int, trial_seed: int) -> list[int]:
    seeds: dict[int, None] = {}
    number = 0
    while len(seeds) < count:
        drawn = derive_seed(seed, _CONFIRM, number)
        number += 1
        if drawn != trial_seed:
            seeds[drawn] = None
    return list(seeds)


def _versions(requirements: Sequence[str]) -> dict[str, str]:
    owners = importlib.metadata.packages_distributions() if requirements else {}
    names = {*_PACKAGES, *(name for module in requirements for name in owners.get(module, []))}
    return {name: importlib.metadata.version(name) for name in sorted(names)}
