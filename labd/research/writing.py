"""A paper's prose, asked of a language model section by section, checked, mended or struck.

What comes out holds only sentences that passed the checker. A section of which nothing is left is empty here,
and labd's own factual sentences stand in its place in the paper (`labd.research.paper_study`).
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from labd.llm.budget import Part
from labd.research import wordlists
from labd.research.asking import Answer, Asker
from labd.research.checker import (
    Finding,
    Rules,
    check,
    check_sentence,
    plain_form,
    squeezed,
    unmentioned,
)
from labd.research.facts import facts_of, verdicts
from labd.research.paper_briefing import SECTION_ORDERS, Briefing, Order
from labd.research.prose import Prose, Sentence, Words, read
from labd.research.study import Study
from labd.text import printable

MAX_REPAIRS = 2
"""So often a model is shown what is wrong with a section; then sentences are struck."""
LEAST_SENTENCES = 2
"""A section with fewer left says too little to stand."""
LEAST_SHARE = 0.25
"""What is left of a text of which more than the rest was struck makes no sense."""
_MAX_TITLE_CHARS = 140
_MAX_SHOWN_FINDINGS = 12
_AT_ONCE = 4
_REFUSED_FOR_GOOD = frozenset({"allowance", "endpoint_down", "model_missing", "context_overflow"})


@dataclass(frozen=True, slots=True)
class Struck:
    """A sentence that a model wrote and that does not stand in the paper, with what was wrong with it."""

    section: str
    sentence: str
    kinds: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One section as it will stand.

    Attributes:
        prose: empty where labd's own sentences stand instead.
        problem: why there is nothing of the model's, in words; empty where there is something.

    """

    name: str
    prose: Prose = field(default_factory=Prose)
    struck: tuple[Struck, ...] = ()
    problem: str = ""

    @property
    def author(self) -> Literal["model", "labd"]:
        """Who wrote it."""
        return "model" if self.prose.blocks else "labd"


@dataclass(frozen=True, slots=True)
class Draft:
    """The prose of a paper.

    Attributes:
        title: the model's, in plain text without the outcome; empty for labd's.
        sections: by the names in `SECTION_ORDERS`, in that order, each one there.

    """

    title: str
    sections: Mapping[str, Section]
    language: str = "en"

    @property
    def struck(self) -> tuple[Struck, ...]:
        """All that was struck, section by section."""
        return tuple(struck for section in self.sections.values() for struck in section.struck)


def write_sections(
    study: Study,
    asker: Asker,
    *,
    figures: Mapping[str, str] | None = None,
    code: str = "",
    language: str = "en",
) -> Draft:
    """Have the model of the role `write` write the paper's prose.

    Args:
        study: what it is about.
        asker: whom to ask. What it can't answer is labd's to write.
        figures: name and meaning of each figure that the paper will have.
        code: what the selected trial changed, as a diff.
        language: one that the checker reads (`labd.research.wordlists.LANGUAGES`), or it is English.

    Raises:
        Cancelled: the work was called off.
        ModelError: no model can be reached at all.

    """
    return _Writer(study, asker, figures or {}, code, language).write()


def improve(
    draft: Draft,
    comments: str,
    study: Study,
    asker: Asker,
    *,
    figures: Mapping[str, str] | None = None,
    code: str = "",
) -> Draft:
    """Have each section written again with what reviewers said, through the same checker.

    A section stays as it is where nothing at least about as long comes of that.

    Raises:
        Cancelled, ModelError: as `write_sections`.

    """
    writer = _Writer(study, asker, figures or {}, code, draft.language)
    return writer.write(before=draft, comments=comments)


@dataclass(frozen=True, slots=True)
class _Round:
    """One reply, and what of it may stand."""

    findings: list[Finding]
    prose: Prose
    kept: Prose

    @property
    def worth(self) -> int:
        return sum(1 for _ in self.kept.sentences)


class _Writer:
    def __init__(
        self, study: Study, asker: Asker, figures: Mapping[str, str], code: str, language: str
    ) -> None:
        self._study, self._asker = study, asker
        self._language = language if language in wordlists.LANGUAGES else "en"
        self._facts = facts_of(study)
        self._briefing = Briefing(study, self._facts, figures, code, self._language)
        self._rules = Rules(
            facts=self._facts,
            verdicts=verdicts(study),
            metric=study.metric.name,
            better=study.metric.better,
            works=frozenset(str(work.get("key", "")) for work in study.references) - {""},
            figures=frozenset(figures),
            names=names_with_digits(study, code),
            instructions=squeezed(self._briefing.instructions),
            language=self._language,
        )

    def write(self, before: Draft | None = None, comments: str = "") -> Draft:
        early = [order for order in SECTION_ORDERS.values() if not order.sums_up]
        late = [order for order in SECTION_ORDERS.values() if order.sums_up]
        sections: dict[str, Section] = {}
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="write") as pool:
            for orders in (early, late):
                told = _as_text(sections.values())
                futures = {
                    order.name: pool.submit(self._section, order, told, before, comments)
                    for order in orders
                }
                sections |= {name: future.result() for name, future in futures.items()}
        title = before.title if before else self._title(_as_text(sections.values()))
        return Draft(title, {name: sections[name] for name in SECTION_ORDERS}, self._language)

    def _section(self, order: Order, told: str, before: Draft | None, comments: str) -> Section:
        parts = self._briefing.parts(order, told)
        if before is None:
            return self._asked(f"paper/{order.name}", order, parts)
        old = before.sections[order.name]
        parts += self._briefing.revision(old.prose.source, comments)
        new = self._asked(f"paper-revised/{order.name}", order, parts)
        return new if 2 * _length(new.prose) >= _length(old.prose) and new.prose.blocks else old

    def _asked(self, key: str, order: Order, parts: Sequence[Part]) -> Section:
        rules = replace(self._rules, works=self._rules.works if order.cites else frozenset())
        rounds: list[_Round] = []
        problem, more = "", tuple[Part, ...]()
        for number in range(1 + MAX_REPAIRS):
            answer = self._asker.ask(
                key if number == 0 else f"{key}/repair-{number}",
                "write",
                [*parts, *more],
                num_predict=order.num_predict,
                variant=number,
            )
            if answer.problem:
                problem = answer.problem
                if answer.code in _REFUSED_FOR_GOOD:
                    break
                continue
            rounds.append(_round(answer, rules))
            faults = _faults(rounds[-1], order, rules)
            if not faults:
                break
            more = self._briefing.repair(rounds[-1].prose.source, faults)
        return _settled(order.name, rounds, problem)

    def _title(self, told: str) -> str:
        for number in range(1 + MAX_REPAIRS):
            answer = self._asker.ask(
                f"paper/title{number or ''}",
                "write",
                self._briefing.title_parts(told),
                num_predict=120,
                variant=number,
            )
            if answer.code in _REFUSED_FOR_GOOD:
                return ""
            title = _as_title(answer.text) if not answer.problem else ""
            if title and self._title_may_stand(title):
                return title
        return ""

    def _title_may_stand(self, title: str) -> bool:
        sentence = Sentence((Words(title),))
        found = [each.kind for each in check_sentence(sentence, self._rules)]
        # A title is no whole sentence; that it is about this study is told by its words.
        about = self._briefing.vocabulary
        long = [
            word.lower()
            for word in re.findall(r"[^\W\d_]{2,}", title)
            if len(word) > 3 or word > "\u2e80"
        ]
        known = sum(any(word in one or one in word for one in about) for word in long)
        return not set(found) - {"language"} and bool(long) and 2 * known >= len(long)


def _round(answer: Answer, rules: Rules) -> _Round:
    prose = read(answer.text)
    findings = check(prose, rules)
    # Of sentences that say the same, all are equal, and the first may stand.
    bad = {id(each.sentence) for each in findings}
    return _Round(findings, prose, prose.keeping(lambda sentence: id(sentence) not in bad))


def _faults(done: _Round, order: Order, rules: Rules) -> list[str]:
    """Give what a model is told about its text; empty if it is good as it is."""
    faults = [
        f'"{printable(each.sentence.source, 200)}": {each.problem}.'
        for each in done.findings[:_MAX_SHOWN_FINDINGS]
    ]
    if done.worth < LEAST_SENTENCES and not faults:
        faults.append("It is too short: write whole sentences, as many as were asked for.")
    if (
        order.figures
        and rules.figures
        and len(unmentioned(done.prose, rules.figures)) == len(rules.figures)
    ):
        shown = ", ".join(f"{{{{ figure_{name} }}}}" for name in sorted(rules.figures))
        faults.append(f"It mentions no figure; mention what fits of {shown}.")
    return faults


def _settled(name: str, rounds: Sequence[_Round], problem: str) -> Section:
    """Take the reply of which most may stand, the later of equals, and strike the rest of it."""
    if not rounds:
        return Section(name, problem=problem or "the model gave no text")
    best = max(reversed(rounds), key=lambda each: each.worth)
    struck = _struck(name, best.findings)
    if best.worth < max(LEAST_SENTENCES, LEAST_SHARE * _length(best.prose)):
        return Section(name, struck=struck, problem="too few of the model's sentences could stand")
    return Section(name, best.kept, struck)


def _struck(name: str, findings: Sequence[Finding]) -> tuple[Struck, ...]:
    by_sentence: dict[int, list[Finding]] = {}
    for each in findings:
        by_sentence.setdefault(id(each.sentence), []).append(each)
    return tuple(
        Struck(
            name,
            printable(group[0].sentence.source, 1000),
            tuple(dict.fromkeys(each.kind for each in group)),
            tuple(dict.fromkeys(each.problem for each in group)),
        )
        for group in by_sentence.values()
    )


def _as_text(sections: Any) -> str:
    return "\n\n".join(
        f"{section.name.replace('_', ' ')}: {section.prose.source}"
        for section in sections
        if section.prose.blocks
    )


def _length(prose: Prose) -> int:
    return sum(1 for _ in prose.sentences)


def _as_title(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = re.sub(r"(?i)\A[#*\s]*(?:title|제목)\s*[*:]+\s*", "", lines[0]).strip(
        "#*_\"'`\u201c\u201d "
    )
    return "" if len(line) > _MAX_TITLE_CHARS else printable(line.rstrip("."), _MAX_TITLE_CHARS)


_NAME = re.compile(r"(?<![\w.])[A-Za-z_][\w-]*\d[\w-]*(?:\.[A-Za-z]\w*)*")


def names_with_digits(study: Study, code: str = "") -> frozenset[str]:
    """Give the words with digits in them that are names in this study: of trials, in the code, in its description.

    A point with a digit behind it ends a name, so that none can carry a decimal number.
    """
    ideas = (f"{idea.title} {idea.hypothesis} {idea.experiment}" for idea in study.ideas)
    trials = (
        f"{trial.name} {trial.idea} {' '.join(trial.files_changed)}" for trial in study.trials
    )
    texts = (
        *(study.title, study.template, study.template_title, study.template_description),
        *(study.metric.name, study.metric.description, code, *ideas, *trials),
    )
    return frozenset(name for text in texts for name in _NAME.findall(plain_form(text)))
