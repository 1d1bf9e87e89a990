"""Having a model think of ideas, one after the other, and look at each again."""

import json
import re
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from labd.llm.budget import Part
from labd.research.asking import Answer, Asker
from labd.research.briefing import fenced
from labd.research.likeness import Print, is_repeat, print_of
from labd.research.past import PastIdea
from labd.template import Template
from labd.text import printable

SHARE = 0.25
"""Of tokens and time: so much of a task may be spent on ideas alone."""
_MAX_TRIES = 3
"""Of one idea, where the model repeats what is there or says nothing of use."""
_MAX_USELESS = 3
"""In a row, after which the model is asked for no more ideas."""
_NUM_PREDICT = 1500
_MAX_PAST = 40
_MAX_SEEDS = 20
_MOST = {
    "title": 200,
    "hypothesis": 1500,
    "experiment": 1500,
    "expected_effect": 800,
    "risk": 800,
}
"""Characters. Longer texts are cut, not refused."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Thought:
    """An idea before it has a rank."""

    title: str
    hypothesis: str
    experiment: str
    expected_effect: str = ""
    risk: str = ""
    scores: tuple[int | None, int | None, int | None] = (None, None, None)
    """Interest, feasibility, originality."""
    source: str = "model"

    @property
    def print(self) -> Print:
        """What it is compared by."""
        return print_of(self.title, f"{self.hypothesis} {self.experiment}")

    @property
    def opinion(self) -> float | None:
        """The mean of the scores that there are."""
        given = [score for score in self.scores if score is not None]
        return statistics.fmean(given) if given else None


class IdeaReply(BaseModel):
    """One idea for changing the experiment."""

    title: str = Field(
        min_length=3, max_length=_MOST["title"], description="what is tried, in a few words"
    )
    hypothesis: str = Field(
        min_length=10,
        max_length=_MOST["hypothesis"],
        description="what you believe to be so, and why",
    )
    experiment: str = Field(
        min_length=10,
        max_length=_MOST["experiment"],
        description="what is to be changed in which part of the code",
    )
    expected_effect: str = Field(
        default="",
        max_length=_MOST["expected_effect"],
        description="what the metric will do, and by what mechanism",
    )
    risk: str = Field(default="", max_length=_MOST["risk"], description="why it may fail")
    interest: int | None = Field(
        default=None, ge=1, le=10, description="from 1, of no interest, to 10"
    )
    feasibility: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="from 1, hardly to be done, to 10, done in a few lines",
    )
    originality: int | None = Field(
        default=None, ge=1, le=10, description="from 1, tried by everybody, to 10"
    )

    @field_validator(*_MOST, mode="before")
    @classmethod
    def _plain(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name in {"expected_effect", "risk"}:
            return ""
        if not isinstance(value, str):
            return value
        text = tidied(value)[: _MOST[info.field_name or "title"]]
        return " ".join(text.split()) if info.field_name == "title" else text

    @field_validator("title")
    @classmethod
    def _has_words(cls, value: str) -> str:
        if not any(char.isalpha() for char in value):
            msg = "a title in words"
            raise ValueError(msg)
        return value

    @field_validator("interest", "feasibility", "originality", mode="before")
    @classmethod
    def _score(cls, value: object) -> object:
        """Read a score out of ten as models write it; nothing where there is none."""
        if isinstance(value, str):
            found = _NUMBER.search(value[:100])
            value = float(found[0]) if found else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return round(value) if 1 <= value <= 10 else None


class ReflectionReply(IdeaReply):
    """The idea after another look."""

    done: bool = Field(default=False, description="true where nothing had to be changed")


def tidied(text: str) -> str:
    """Give a model's text without what drives terminals and editors: control characters and turned directions."""
    kept = "".join(
        char
        for char in text.replace("\r\n", "\n").replace("\t", " ")
        if char == "\n"
        or (unicodedata.category(char) not in {"Cc", "Cs", "Co", "Cn"} and char not in _BIDI)
    )
    return kept.strip()


class Thinker:
    """Has a model think of one idea after the other, so that each may differ from those before."""

    def __init__(
        self,
        asker: Asker,
        about: Sequence[Part],
        past: Sequence[PastIdea],
        seeds: Sequence[Thought],
        reflections: int,
    ) -> None:
        self._asker, self._about, self._reflections = asker, about, reflections
        self._known = [print_of(one.title, one.hypothesis) for one in past]
        self._known += [one.print for one in seeds]
        self._thoughts: list[Thought] = []

    def think(self, count: int) -> list[Thought]:
        """Give up to so many ideas; fewer where the model has no more, or too much is used up."""
        useless = 0
        for number in range(1, count + 1):
            thought: Thought | None = None
            refused = ""
            for variant in range(_MAX_TRIES):
                if useless >= _MAX_USELESS or self._is_over(number, variant):
                    return self._thoughts
                answer = self._draft(number, variant, refused)
                useless = useless + 1 if answer.problem else 0
                if answer.problem:
                    continue
                thought = _thought(answer.value)
                if not self._is_known(thought):
                    break
                refused, thought = thought.title, None
            if thought is not None:
                self._thoughts.append(self._reflect(number, thought))
        return self._thoughts

    def _is_over(self, number: int, variant: int) -> bool:
        """Say whether enough was spent; on record, so that a resumed task thinks as long as it did."""
        said: str = self._asker.journal.step(
            f"ideas/limit-{number}-{variant}",
            {"share": SHARE},
            lambda: self._asker.allowance.out_of(SHARE, of=("tokens", "time")),
        )
        return bool(said)

    def _is_known(self, thought: Thought) -> bool:
        return is_repeat(thought.print, [*self._known, *(one.print for one in self._thoughts)])

    def _draft(self, number: int, variant: int, refused: str) -> Answer:
        so_far = "\n".join(f"- {one.title}" for one in self._thoughts)
        again = (
            f"“{printable(refused, 200)}” is there already. Think of something else.\n\n"
            if refused
            else ""
        )
        parts = [
            *self._about,
            Part(
                "so_far", f"# Your ideas so far\n{so_far}" if so_far else "", 60, "head_and_tail"
            ),
            Part("request", again + _REQUEST, required=True),
        ]
        return self._ask(f"ideas/idea-{number}/draft", parts, IdeaReply, variant)

    def _reflect(self, number: int, thought: Thought) -> Thought:
        """Have the model look at its idea again; what comes of that counts where it is still a new idea."""
        for turn in range(1, self._reflections + 1):
            parts = [
                *self._about,
                Part("idea", _as_json(thought), required=True, role="assistant"),
                Part("request", _REFLECT, required=True),
            ]
            answer = self._ask(f"ideas/idea-{number}/reflect-{turn}", parts, ReflectionReply, 0)
            if answer.problem:
                return thought
            again = _thought(answer.value)
            if answer.value.done or again == thought or self._is_known(again):
                return thought
            thought = again
        return thought

    def _ask(
        self, key: str, parts: Sequence[Part], schema: type[BaseModel], variant: int
    ) -> Answer:
        return self._asker.ask(
            key, "ideas", parts, schema=schema, num_predict=_NUM_PREDICT, variant=variant
        )


def _thought(reply: IdeaReply) -> Thought:
    return Thought(
        title=reply.title,
        hypothesis=reply.hypothesis,
        experiment=reply.experiment,
        expected_effect=reply.expected_effect,
        risk=reply.risk,
        scores=(reply.interest, reply.feasibility, reply.originality),
    )


def _as_json(thought: Thought) -> str:
    names = ("interest", "feasibility", "originality")
    told = {
        "title": thought.title,
        "hypothesis": thought.hypothesis,
        "experiment": thought.experiment,
        "expected_effect": thought.expected_effect,
        "risk": thought.risk,
        **dict(zip(names, thought.scores, strict=True)),
    }
    return json.dumps(told, ensure_ascii=False, indent=1)


_SYSTEM = (
    "You are a careful researcher. You think of changes to an experiment that may improve its metric honestly: "
    "changes of the method, that can be made in the files which may be changed, within the time of a run, and "
    "without data or programs from elsewhere. The metric is measured by code that nobody may change."
)
_REQUEST = (
    "Think of one idea that is not told above. It has to be something that can be shown wrong by running the "
    "experiment, and that is small enough for one change of the code. Prefer a mechanism that you can explain to a "
    "number that might be lucky."
)
_REFLECT = (
    "Look at your idea again. Would the change do what the hypothesis says? Can it be made in the files that may be "
    "changed, and does it fit into the time of a run? Is it told in the lists above already? Give the idea again, "
    "better; or give it as it is, with done set to true."
)


def about(
    template: Template,
    files: Mapping[str, str],
    past: Sequence[PastIdea],
    seeds: Sequence[Thought],
) -> list[Part]:
    """Give the parts of a prompt that tell of the experiment, and of what is thought of already."""
    metric = template.metric
    task = (
        f"# The experiment: {template.title}\n{template.description}\n\n"
        f"Metric: {metric.name or 'as the experiment reports it'}, {metric.better} is better. {metric.description}"
    )
    settings = "\n".join(f"- {one.name}: {one.description}" for one in template.space)
    code = "\n\n".join(f"{name}\n{fenced(text)}" for name, text in sorted(files.items()))
    own = "\n".join(
        f"- {one.title}: {printable(one.experiment, 300)}" for one in seeds[:_MAX_SEEDS]
    )
    tried = "\n".join(_line(one) for one in past[:_MAX_PAST])
    return [
        Part("system", _SYSTEM, role="system", required=True),
        Part("task", task, 100),
        Part("guidance", template.guidance, 50, "head_and_tail"),
        Part("settings", f"# Settings\n{settings}" if settings else "", 30, "head_and_tail"),
        Part("code", f"# Files that may be changed\n{code}" if code else "", 70, "head_and_tail"),
        Part("seeds", f"# Ideas of its author\n{own}" if own else "", 40, "head_and_tail"),
        Part("past", f"# Tried before\n{tried}" if tried else "", 60, "head_and_tail"),
    ]


def _line(past: PastIdea) -> str:
    effect = (
        "" if past.effect is None else f", {past.effect:+.4g} against the baseline on validation"
    )
    return f"- {printable(past.title, 200)}: {past.outcome.replace('_', ' ')}{effect}"
