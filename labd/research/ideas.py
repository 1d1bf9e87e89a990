"""What to try: ideas of the model, of the template's author, and of labd where nobody else has any.

An idea is said before anything is run. None is tried that is told already, in this task or an earlier one.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from labd.research.asking import Asker
from labd.research.likeness import is_repeat, likeness, print_of
from labd.research.past import BAD, PastIdea
from labd.research.study import Idea
from labd.research.thinking import Thinker, Thought, about, tidied
from labd.template import SeedIdea, Template
from labd.text import printable

_MAX_FILE_CHARS = 64 * 1024
_WEIGHT_OF_FAILURE = 4.0
"""Points out of ten that an idea loses which is told just as one that came to nothing."""


def gather_ideas(
    asker: Asker,
    template: Template,
    *,
    num_ideas: int,
    past: Sequence[PastIdea] = (),
    seed_ideas: Sequence[SeedIdea] = (),
    files: Mapping[str, str] | None = None,
    reflections: int = 2,
) -> list[Idea]:
    """Give up to `num_ideas` ideas, the best first, and at least one.

    Args:
        asker: whose model for ideas is asked.
        template: what the experiment is.
        num_ideas: how many are wanted.
        past: what the lab tried on the template before, as it was known when this task first asked.
        seed_ideas: the template's own; those that are not in `past` compete with the model's.
        files: the text of the files that may be changed; ``None``: as they lie in the template's directory.
        reflections: how often the model may look at an idea again.

    Raises:
        Cancelled: the work was called off.
        ModelError: the model can't be reached, and has never answered in this attempt.
        StorageError: the disk would not take an answer.

    """
    past = _as_first_told(asker, template, past)
    seeds = _seeds(seed_ideas, past)
    shown = _editable(template) if files is None else files
    thinker = Thinker(asker, about(template, shown, past, seeds), past, seeds, reflections)
    found = [*seeds, *thinker.think(num_ideas)]
    if not found:
        found = list(_fallbacks(template, past))[: max(1, num_ideas)]
    ranked = _ranked(found, past)[: max(1, num_ideas)]
    return [_named(one, number) for number, one in enumerate(ranked, start=1)]


# -- what is known without it


def _as_first_told(asker: Asker, template: Template, past: Sequence[PastIdea]) -> list[PastIdea]:
    """Give what was known of the past when the task first asked; other tasks may have ended since."""
    recorded = asker.journal.step(
        "ideas/past",
        {"template": template.name},
        lambda: [one.model_dump(mode="json") for one in past],
    )
    return [PastIdea.model_validate(one) for one in recorded]


def _seeds(seed_ideas: Sequence[SeedIdea], past: Sequence[PastIdea]) -> list[Thought]:
    """Give the author's ideas that were not tried yet."""
    known = [print_of(one.title, one.hypothesis) for one in past]
    found: list[Thought] = []
    for seed in seed_ideas:
        title, experiment = (
            " ".join(tidied(seed.title).split())[:300],
            tidied(seed.experiment)[:4000],
        )
        thought = Thought(
            title=title,
            hypothesis="The author of the template expects this to be worth trying.",
            experiment=experiment,
            source="seed",
        )
        mine = print_of(title, experiment)
        if title and experiment and not is_repeat(mine, known):
            found.append(thought)
            known.append(mine)
    return found


def _editable(template: Template) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in template.editable:
        try:
            raw = (template.directory / name).read_bytes()
        except OSError:  # said where it matters: no trial can be made of it
            continue
        found[name] = raw.decode(errors="replace")[:_MAX_FILE_CHARS]
    return found


def _fallbacks(template: Template, past: Sequence[PastIdea]) -> Iterator[Thought]:
    """Give plain ideas that hold for every experiment, those that were tried before last."""
    made = [
        _of_setting(spec.name, spec.description, template.metric.name) for spec in template.space
    ]
    made.append(_of_files(template))
    known = [print_of(one.title) for one in past]
    yield from sorted(
        made, key=lambda one: any(print_of(one.title).title == k.title for k in known)
    )


def _of_setting(name: str, description: str, metric: str) -> Thought:
    shown = f"{name} ({description})" if description else name
    return Thought(
        title=f"Other values of {name}",
        hypothesis=f"Another value of {shown} than the usual one gives a better {metric or 'result'}.",
        experiment=f"Use another value of {name}, and leave everything else as it is.",
        source="fallback",
    )


def _of_files(template: Template) -> Thought:
    where = ", ".join(template.editable) or "the experiment"
    metric = template.metric.name or "the metric"
    return Thought(
        title=f"A plain change in {printable(where, 200)}",
        hypothesis=f"Some setting in {printable(where, 1000)} is not at the value that is best for {metric}.",
        experiment=f"Change one setting in {printable(where, 1000)} that {metric} may depend on, and nothing else.",
        source="fallback",
    )


# -- the order


def _ranked(thoughts: Sequence[Thought], past: Sequence[PastIdea]) -> list[Thought]:
    """Order ideas by what the model thinks of them, less what speaks against them.

    A model that gives everything a nine says nothing by it: its scores count against their own mean. What has no
    score, as the author's ideas, stands at that mean; of equals the earlier comes first.
    """
    opinions = [opinion for one in thoughts if (opinion := one.opinion) is not None]
    mean = statistics.fmean(opinions) if opinions else 0.0
    failed = [print_of(one.title, one.hypothesis) for one in past if one.outcome in BAD]

    def worth(one: Thought) -> float:
        opinion = 0.0 if one.opinion is None else one.opinion - mean
        near = max((likeness(one.print, other) for other in failed), default=0.0)
        return round(opinion - _WEIGHT_OF_FAILURE * near, 9)

    return sorted(thoughts, key=lambda one: -worth(one))


def _named(thought: Thought, number: int) -> Idea:
    interest, feasibility, originality = thought.scores
    return Idea.model_validate(
        {
            "name": f"idea-{number}",
            "title": thought.title,
            "hypothesis": thought.hypothesis,
            "experiment": thought.experiment,
            "expected_effect": thought.expected_effect,
            "risk": thought.risk,
            "interest": interest,
            "feasibility": feasibility,
            "originality": originality,
            "source": thought.source,
        }
    )
