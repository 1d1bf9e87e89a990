"""What a model is told before it writes a part of a paper: the rules, the facts, the study, the order. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labd.llm.budget import Part
from labd.research.facts import Fact
from labd.research.record import Verdict
from labd.research.study import Idea, Study
from labd.text import head_and_tail, printable

_MAX_CODE_CHARS = 6000
_MAX_WORKS = 40
_MAX_TRIALS = 40
_MAX_IDEAS = 20


@dataclass(frozen=True, slots=True)
class Order:
    """What one section has to be.

    Attributes:
        sums_up: it is written after the others, and gets their text.
        cites: works may be cited in it.
        figures: it should speak of the figures.

    """

    name: str
    order: str
    num_predict: int = 1200
    sums_up: bool = False
    cites: bool = False
    figures: bool = False


SECTION_ORDERS: dict[str, Order] = {
    order.name: order
    for order in (
        Order(
            "abstract",
            "Write the abstract in three to five sentences: the question, what was tried, and what was found.",
            600,
            sums_up=True,
        ),
        Order(
            "introduction",
            "Write the introduction in four to eight sentences: what the experiment is about, which question is "
            "asked of it, and which ideas were tried. Do not tell results.",
            cites=True,
        ),
        Order(
            "related_work",
            "Write the section on related work in three to eight sentences: how the ideas that were tried stand to "
            "the listed works. Say of a work only what its title and abstract say, and cite it in the same sentence.",
            cites=True,
        ),
        Order(
            "method",
            "Write the section on the method in four to eight sentences: what the selected trial changed in the code, "
            "and how that is meant to work. If no trial was selected, tell what the trials changed. Do not tell results.",
            cites=True,
        ),
        Order(
            "results",
            "Write the section on results in four to eight sentences: what was measured on the test split, what the "
            "trials, the ablations and the control gave, as far as there are any. Mention each figure where it fits.",
            figures=True,
        ),
        Order(
            "discussion",
            "Write the discussion in three to six sentences: what the results say about the hypothesis, what may "
            "explain them, and what one should look at next.",
        ),
        Order(
            "limitations",
            "Write on the limitations in three to six sentences: why a sceptical reader should be careful with these "
            "results.",
        ),
    )
}
"""The sections by name, in the order of the paper."""

_LANGUAGES = {"en": "English", "ko": "Korean (한국어)"}
_RULES = """\
You write one part of a scientific paper about an experiment that a program carried out and measured.
Your text is checked by a program. Sentences that break a rule are struck:
- Type no number, neither in digits nor in words. Where a number belongs, write the key of a fact in double braces, \
for example {example}; the value is put there for you, with its sign and unit. Use only keys that are listed.
- A claim (better, worse, higher, significant, shows that, ...) names the fact that carries it in the same sentence, \
and agrees with the verdict.
- Right before a value say whose it is: the baseline's or the selected code's.
- Cite works only as [@key] with a listed key. Speak of no other work.
- Write plain sentences in paragraphs: no headings, tables, formulas, links, HTML or LaTeX. Names from the code stand \
in `backticks`.
- Write in {language}. Reply with the text and nothing else."""
_VERDICTS = {
    Verdict.IMPROVED: "the selected code IMPROVES on the baseline",
    Verdict.NO_IMPROVEMENT: "NO IMPROVEMENT over the baseline was found",
    Verdict.WORSE: "the selected code is WORSE than the baseline on the test split",
    Verdict.INCONCLUSIVE: "INCONCLUSIVE: too little could be measured to say anything",
}
_TITLE = (
    "Write a title for the paper, at most twelve words, in plain text on one line. It says what was studied, and "
    "claims nothing: the outcome is added to it."
)


class Briefing:
    """Makes prompts about one study.

    Args:
        study: what it is about.
        facts: what may be named.
        figures: name and meaning of each figure.
        code: what the selected trial changed, as a diff.
        language: two letters.

    """

    def __init__(
        self,
        study: Study,
        facts: Mapping[str, Fact],
        figures: Mapping[str, str],
        code: str,
        language: str,
    ) -> None:
        self._study = study
        example = "{{ best_mean }}" if "best_mean" in facts else "{{ num_trials }}"
        self._rules = _RULES.format(example=example, language=_LANGUAGES[language])
        main = [fact for fact in facts.values() if _is_main(fact)]
        more = [fact for fact in facts.values() if not _is_main(fact)]
        self._known = [
            Part("verdict", _verdict(study), required=True),
            Part("study", _about(study), priority=7, shrink="head_and_tail"),
            Part("more facts", _listed("More facts:", more), priority=4, shrink="head_and_tail"),
            Part("ideas", _ideas(study), priority=5, shrink="head_and_tail"),
            Part("trials", _trials(study), priority=3, shrink="head_and_tail"),
            Part("code", _code(code), priority=2, shrink="head_and_tail"),
            Part("figures", _figures(figures), priority=6),
            Part("facts", _listed("Facts (key = value: meaning):", main), required=True),
        ]
        self._works = Part("works", _works(study), priority=4, shrink="head_and_tail")

    @property
    def instructions(self) -> str:
        """All that is labd's own in the prompts, so that an echo of it is told."""
        return "\n".join(
            [self._rules, _TITLE, *(order.order for order in SECTION_ORDERS.values())]
        )

    @property
    def vocabulary(self) -> frozenset[str]:
        """The longer words in which the study speaks of itself."""
        study = self._study
        texts = [study.title, study.template, study.template_title, study.template_description]
        texts += [study.metric.name, study.metric.description]
        texts += [f"{idea.title} {idea.experiment}" for idea in study.ideas]
        words = re.findall(r"[^\W\d_]{2,}", " ".join(texts).lower())
        return frozenset(word for word in words if len(word) > 3 or word > "\u2e80")

    def parts(self, order: Order, told: str) -> list[Part]:
        """Give the prompt for a section; `told` is the text of the sections before it."""
        parts = [Part("rules", self._rules, role="system", required=True), *self._known]
        if order.cites:
            parts.append(self._works)
        if order.sums_up and told:
            text = f"The sections of the paper:\n{told}"
            parts.append(Part("sections", text, priority=6, shrink="head_and_tail"))
        return [*parts, Part("order", order.order, priority=9, required=True)]

    def title_parts(self, told: str) -> list[Part]:
        """Give the prompt for the title."""
        return [
            Part("rules", self._rules, role="system", required=True),
            *(part for part in self._known if part.name in {"study", "ideas", "code"}),
            Part("sections", f"The paper:\n{told}", priority=6, shrink="head_and_tail"),
            Part("order", _TITLE, priority=9, required=True),
        ]

    def repair(self, text: str, faults: Sequence[str]) -> tuple[Part, ...]:
        """Give what is added to show a model what is wrong with its text."""
        listed = "\n".join(f"- {fault}" for fault in faults)
        order = (
            f"These places break the rules:\n{listed}\nWrite the whole section again without these faults. Keep what "
            "is good. Reply with the text and nothing else."
        )
        return (
            Part("reply", text or "(nothing)", 8, "head_and_tail", role="assistant"),
            Part("repair", order, priority=9, required=True),
        )

    def revision(self, text: str, comments: str) -> list[Part]:
        """Give what is added to have a section written again after a review."""
        order = "Write this section again, whole, so that it answers what of the comments concerns it. All rules hold."
        return [
            Part("reply", text or "(nothing)", 8, "head_and_tail", role="assistant"),
            Part("comments", f"Reviewers said:\n{comments}", priority=7, shrink="head_and_tail"),
            Part("revision", order, priority=9, required=True),
        ]


def _is_main(fact: Fact) -> bool:
    return not fact.key.startswith(("trial_", "ablation_", "control_", "against_"))


def _listed(heading: str, facts: Sequence[Fact]) -> str:
    lines = [f"{{{{ {fact.key} }}}} = {fact.shown}: {fact.meaning}" for fact in facts]
    return "\n".join([heading, *lines]) if lines else ""


def _verdict(study: Study) -> str:
    claim = study.claim
    lines = [f"Verdict: {_VERDICTS[claim.verdict]}. The rule: {claim.reason}"]
    if study.best_trial is None:
        lines.append(
            "No trial was selected, because none was better than the baseline on validation."
        )
    return " ".join(lines)


def _about(study: Study) -> str:
    seeds = (
        "the same fresh seeds" if study.has_seeds else "repeated runs, because it takes no seed"
    )
    apart = (
        ""
        if study.has_splits
        else " The experiment has no test split: both splits are the same data, and the difference may be overstated."
    )
    return (
        f"The experiment: {study.template_title}. {study.template_description}\n"
        f"The metric: {study.metric.name} ({study.metric.description}); {study.metric.better} is better.\n"
        "How it was done: a language model proposed ideas and changed the experiment's code; each change is a trial, "
        "run once on the validation split. The best trial was selected on validation alone, then it and the baseline "
        f"were run again on the test split over {seeds}.{apart}"
    )


def _ideas(study: Study) -> str:
    selected = {trial.name: trial.idea for trial in study.trials}.get(study.best_trial or "")
    lines = [
        f"- {idea.name}{' (of the selected trial)' if idea.name == selected else ''}: {_idea(idea)}"
        for idea in study.ideas[:_MAX_IDEAS]
    ]
    return "\n".join(["The ideas:", *lines]) if lines else ""


def _idea(idea: Idea) -> str:
    said = f"{idea.title}. Hypothesis: {idea.hypothesis} Change: {idea.experiment}"
    return printable(" ".join(said.split()), 600)


def _trials(study: Study) -> str:
    lines = [
        f"- {trial.name} ({trial.move}, {trial.idea}"
        f"{f', from {trial.parent}' if trial.parent else ''}): {trial.status.replace('_', ' ')}; "
        f"{printable(' '.join(trial.plan.split()), 200)}"
        for trial in study.trials[:_MAX_TRIALS]
    ]
    return "\n".join(["The trials:", *lines]) if lines else ""


def _code(code: str) -> str:
    if not code.strip():
        return ""
    return f"What the selected trial changed in the code:\n{head_and_tail(code, _MAX_CODE_CHARS)}"


def _figures(figures: Mapping[str, str]) -> str:
    lines = [f"{{{{ figure_{name} }}}}: {meaning}" for name, meaning in figures.items()]
    return (
        "\n".join(["Figures (the key is shown as the figure's number):", *lines]) if lines else ""
    )


def _works(study: Study) -> str:
    lines = []
    for work in study.references[:_MAX_WORKS]:
        abstract = printable(" ".join(str(work.get("abstract") or "").split()), 300)
        title = printable(str(work.get("title") or ""), 200)
        lines.append(f"[@{work.get('key')}] {title}{f'. {abstract}' if abstract else ''}")
    if not lines:
        return "No works were fetched: cite nothing, and do not speak of other work."
    return "\n".join(["Works that may be cited:", *lines])
