"""What may not stand in a paper, found sentence by sentence in what a language model wrote.

Each finding says which sentence, and tells the model what to do about it. The rules: every number is a named
fact, every work cited was fetched, a claim names the result that carries it and agrees with the verdict,
nothing is markup, and all of it is prose of the paper's language. Pure.

A digit is refused in whatever script or guise (full width, raised, circled, as mathematical letters), as are
numbers in words of English, Korean, Chinese and Japanese beyond `one`, `two`, `first` and the like. Names with
digits (`conv2d`, `trial-003`, L2) stand if the template, its code or an idea has the same name, also as code.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from labd.research import wordlists as words_of
from labd.research.facts import Fact
from labd.research.prose import (
    Block,
    Cited,
    Code,
    Figure,
    Foreign,
    Formula,
    Prose,
    Sentence,
    Value,
    Words,
)
from labd.research.record import Verdict
from labd.text import printable

MAX_SENTENCE_CHARS = 700
MIN_PROSE_WORDS = 4
_MAX_WORD_CHARS = 40
_ECHO_CHARS = 12
_LEAST_FUNCTION_WORDS = 0.12
_LEAST_HANGUL = 0.3
_LEAST_DIFFERENT = 0.35

Kind = Literal[
    "number", "number in words", "unknown fact", "unknown work", "unknown figure", "no citation", "claim",
    "against the verdict", "whose value", "unit", "markup", "echo", "length", "language", "repeated", "chatter",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one sentence, in words for the model."""

    kind: Kind
    sentence: Sentence
    problem: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What a text is held against.

    Attributes:
        verdicts: see `labd.research.facts.verdicts`.
        works: keys that may be cited.
        figures: names of the figures that there are.
        names: words with digits in them that are names.
        instructions: what the model was told, `squeezed`; no sentence of it may come back.

    """

    facts: Mapping[str, Fact]
    verdicts: Mapping[str, Verdict]
    metric: str
    better: Literal["higher", "lower"]
    works: frozenset[str] = frozenset()
    figures: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    instructions: str = ""
    language: str = "en"


def check(prose: Prose, rules: Rules) -> list[Finding]:
    """Give what is wrong with a text, in its order; empty if it may stand."""
    found: list[Finding] = []
    seen: set[str] = set()
    for block in prose.blocks:
        found += _whole(block)
        for sentence in block.sentences:
            found += check_sentence(sentence, rules)
            same = squeezed(sentence.source)
            if same in seen:
                found.append(Finding("repeated", sentence, "it was said before; leave it out"))
            seen.add(same)
    return found


def check_sentence(sentence: Sentence, rules: Rules) -> list[Finding]:
    """Give what is wrong with one sentence by itself."""
    return [
        Finding(kind, sentence, problem)
        for rule in _RULES
        for kind, problem in rule(sentence, rules)
    ]


def unmentioned(prose: Prose, figures: frozenset[str]) -> list[str]:
    """Give the figures that a text does not speak of."""
    named = {
        piece.name
        for sentence in prose.sentences
        for piece in sentence.pieces
        if isinstance(piece, Figure)
    }
    return sorted(figures - named)


def mask_numbers(text: str, names: frozenset[str] = frozenset()) -> str:
    """Give a model's words on one line with each number in it left out visibly, for quoting them."""
    plain = " ".join(plain_form(text).split())
    out, at = [], 0
    for start, end in _number_spans(plain, names):
        out += [plain[at:start], "[number]"]
        at = end
    return "".join([*out, plain[at:]])


def plain_form(text: str) -> str:
    """Give the text in which digits are digits: compatibility forms resolved, invisible signs taken out."""
    counted = "".join(
        f" {unicodedata.numeric(char):g}" if unicodedata.category(char) == "Nl" else char
        for char in text
    )
    shown = unicodedata.normalize("NFKC", counted)
    return "".join(char for char in shown if unicodedata.category(char) not in {"Cf", "Mn", "Me"})


# -- numbers

_WORD = re.compile(r"[^\s,;!?()\[\]\"\u201c\u201d]+")
_NAME = re.compile(r"[^\W\d_][\w.+/-]*")


def _numbers(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    for piece in sentence.pieces:
        if isinstance(piece, Words):
            plain = plain_form(piece.text)
            for start, end in _number_spans(plain, rules.names):
                yield from _told_number(plain[start:end])
        elif isinstance(piece, Code):
            plain = plain_form(piece.text)
            if plain not in rules.names and (
                _has_digit(plain) or words_of.WORDS_IN_CODE.search(plain)
            ):
                yield from _told_number(piece.text)
        elif isinstance(piece, Formula):
            plain = plain_form(piece.tex)
            if _has_digit(plain) or words_of.NUMBER_WORDS.search(plain):
                yield from _told_number(piece.tex)


def _told_number(text: str) -> Iterator[tuple[Kind, str]]:
    shown = printable(text, 40)
    kind: Kind = "number" if _has_digit(text) else "number in words"
    yield (
        kind,
        f'it has the number "{shown}"; name a fact as {{{{ key }}}} or leave the number out',
    )


def _number_spans(plain: str, names: frozenset[str]) -> list[tuple[int, int]]:
    """Give where numbers stand, in digits or words, but for those that are part of a known name."""
    spans = [
        (match.start(), match.start() + len(match.group().rstrip(".:'")))
        for match in _WORD.finditer(plain)
        if any(map(str.isdecimal, match.group())) and not _is_name(match.group(), names)
    ]
    spans += [
        (at, at + 1)
        for at, char in enumerate(plain)
        if _is_number(char) and not char.isdecimal() and not _inside(at, spans)
    ]
    spans += [
        match.span()
        for match in words_of.NUMBER_WORDS.finditer(plain)
        if not _inside(match.start(), spans)
    ]
    return sorted(spans)


def _is_name(word: str, names: frozenset[str]) -> bool:
    bare = word.strip(".':\u2019")
    return bare in names and _NAME.match(bare) is not None


def _inside(at: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in spans)


def _is_number(char: str) -> bool:
    # Han numerals are letters here; the word lists have them.
    return unicodedata.category(char) in {"Nd", "No", "Nl"}


def _has_digit(text: str) -> bool:
    return any(map(_is_number, text))


# -- references


def _references(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    for piece in sentence.pieces:
        if isinstance(piece, Value) and piece.key not in rules.facts:
            yield "unknown fact", f"there is no fact {{{{ {printable(piece.key, 60)} }}}}"
        elif isinstance(piece, Figure) and piece.name not in rules.figures:
            yield "unknown figure", f"there is no figure {printable(piece.name, 60)}"
        elif isinstance(piece, Cited):
            for key in piece.keys:
                if key not in rules.works:
                    yield "unknown work", f"there is no work [@{printable(key, 60)}] to cite"
    cites = any(isinstance(piece, Cited) for piece in sentence.pieces)
    if not cites and words_of.UNCITED.search(plain_form(sentence.words)):
        yield (
            "no citation",
            "it speaks of other work without [@key]; cite one that is listed or leave it out",
        )


def _glued(sentence: Sentence, _rules: Rules) -> Iterator[tuple[Kind, str]]:
    """Find values of which what stands beside them makes another number: two of them, a point, a minus."""
    shown = "".join(
        "\ufffc"
        if isinstance(piece, Value)
        else piece.text
        if isinstance(piece, Words)
        else "\ufffd"
        for piece in sentence.pieces
    )
    if _GLUED.search(plain_form(shown)):
        yield (
            "unit",
            "a value stands alone, between blanks: no sign, point, letter or other value touches it",
        )


_GLUED = re.compile(
    r"[^\s(\"'\u201c\u2018\u2013\u2014\uac00-\ud7a3]\ufffc|\ufffc(?:\s?\ufffc|\ufffd)"
    r"|\b(?:minus|plus|negative|times|point)\s\ufffc|\ufffc(?:[a-z]|[.,/':\u00b7+](?=\w)|\s?(?:times|points?|x)\s\ufffc)",
    re.IGNORECASE,
)


def _units(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    for before, after in zip(sentence.pieces, sentence.pieces[1:], strict=False):
        if not isinstance(before, Value) or not isinstance(after, Words):
            continue
        fact = rules.facts.get(before.key)
        if fact is not None and words_of.PER_CENT.match(after.text):
            yield (
                "unit",
                f"{{{{ {fact.key} }}}} is no percentage, or has its sign already; leave the unit out",
            )


def _whose(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    """Find a value told as the other side's: near it only the wrong side is named."""
    facts: list[Fact] = []
    between = [""]
    for piece in sentence.pieces:
        if isinstance(piece, Words):
            between[-1] += plain_form(piece.text)
        elif isinstance(piece, Value) and piece.key in rules.facts:
            facts.append(rules.facts[piece.key])
            between.append("")
    before = between[0]
    for fact, following in zip(facts, between[1:], strict=True):
        after = _OWN.match(following)
        own = after[0] if after else ""
        named = _sides(before) or _sides(own or _CLAUSES.split(following)[0])
        if fact.side and named and fact.side not in named:
            yield "whose value", f"{{{{ {fact.key} }}}} is {fact.meaning}; say so right before it"
        before = following[len(own) :]


_OWN = re.compile(
    r"\s*(?:for|by|with|from|in)\b(?:(?!,|;|\b(?:and|but|while|against|versus|vs|compared|to)\b).)*"
)
"""What follows a value and still speaks of it: ``0.9 for the baseline``."""


def _sides(text: str) -> set[str]:
    named = {"baseline"} if words_of.BASELINE.search(text) else set()
    return named | ({"selected"} if words_of.SELECTED.search(text) else set())


# -- claims

_CLAUSES = re.compile(r"[,;:\u2013\u2014]|\s-\s|\b(?:and|but|while|whereas|although|though)\b")


def _claims(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    text = words_of.NO_HEDGE.sub(" ", plain_form(_spoken(sentence)))
    text = words_of.NO_NEGATION.sub(" ", text)
    facts = [
        rules.facts[piece.key]
        for piece in sentence.pieces
        if isinstance(piece, Value) and piece.key in rules.facts
    ]
    measured = _speaks_of_metric(text, rules)
    problems = (
        _judged(polarity, facts, text, rules)
        for clause in _CLAUSES.split(text)
        for polarity in _polarities(clause, rules, measured=measured)
    )
    yield from dict.fromkeys(problem for problem in problems if problem is not None)


def _spoken(sentence: Sentence) -> str:
    """Give what a reader reads as words, also where it is set as code or a formula."""
    return "".join(
        piece.text
        if isinstance(piece, Words)
        else f" {re.sub(_COMMAND, ' ', piece.tex)} "
        if isinstance(piece, Formula)
        else piece.text
        if isinstance(piece, Code) and piece.text.isalpha() and piece.text not in {"gain", "gains"}
        else "\ufffc"
        for piece in sentence.pieces
    ).strip()


_COMMAND = re.compile(r"\\[A-Za-z]+|[{}]")


def _speaks_of_metric(text: str, rules: Rules) -> bool:
    name = re.escape(rules.metric).replace("_", "[ _-]?")
    return bool(words_of.OUTCOMES.search(text) or re.search(rf"(?i)(?<!\w){name}(?!\w)", text))


Polarity = Literal["better", "worse", "not better", "claim"]


def _polarities(clause: str, rules: Rules, *, measured: bool) -> set[Polarity]:
    """Give what a clause claims, hedged and denied claims taken out."""
    ups = (
        (words_of.UP, words_of.DOWN) if rules.better == "higher" else (words_of.DOWN, words_of.UP)
    )
    better = [*words_of.POSITIVE.finditer(clause)]
    worse = [*words_of.NEGATIVE.finditer(clause)]
    if measured:
        better += ups[0].finditer(clause)
        worse += ups[1].finditer(clause)
    found: set[Polarity] = set()
    for matches, polarity in ((better, "better"), (worse, "worse")):
        for match in matches:
            if _hedged(clause, match.start()):
                continue
            if not _denied(clause, match):
                found.add("better" if polarity == "better" else "worse")
            elif polarity == "better":
                found.add("not better")
    if not found and any(
        not _hedged(clause, match.start()) and not _denied(clause, match)
        for match in words_of.CLAIMING.finditer(clause)
    ):
        found.add("claim")
    return found


def _hedged(clause: str, at: int) -> bool:
    return bool(words_of.HEDGE.search(clause[:at]) or words_of.HEDGE_KO.search(clause))


def _denied(clause: str, match: re.Match[str]) -> bool:
    before, after = clause[: match.start()], clause[match.end() :]
    return bool(words_of.NEGATION.search(before) or words_of.NEGATION_AFTER.search(after))


def _judged(
    polarity: Polarity, facts: list[Fact], text: str, rules: Rules
) -> tuple[Kind, str] | None:
    """Say what is wrong with a claim that rests on these facts; `None` if they carry it."""
    found = {
        fact.evidence: rules.verdicts[fact.evidence]
        for fact in facts
        if fact.evidence in rules.verdicts
    }
    said = f'the verdict is "{rules.verdicts["test"].value.replace("_", " ")}"'
    if polarity == "not better":
        denies = rules.verdicts["test"] is Verdict.IMPROVED and (
            "test" in found or not any(fact.evidence for fact in facts)
        )
        return (
            ("against the verdict", f"it denies the improvement, but {said}") if denies else None
        )
    on_validation = [fact for fact in facts if fact.evidence == "validation"]
    if not found and not on_validation:
        return (
            "claim",
            "it claims something without the result that carries it; name that as {{ key }}, or leave it out",
        )
    if polarity == "claim":
        return None
    wanted = Verdict.IMPROVED if polarity == "better" else Verdict.WORSE
    if any(
        _may_carry(evidence, text) and _carries(evidence, verdict, wanted, text)
        for evidence, verdict in found.items()
    ):
        return None
    if (
        on_validation
        and words_of.VALIDATION.search(text)
        and _holds(polarity, on_validation, rules)
    ):
        return None
    return (
        "against the verdict",
        f"it says {polarity}, but {said} and the facts named do not carry that",
    )


def _may_carry(evidence: str, text: str) -> bool:
    """Say whether a sentence speaks of that comparison, and not of the selected code against the baseline."""
    if evidence == "test":
        return True
    sides = _sides(text)
    if sides >= {"baseline", "selected"} or not words_of.OTHER_COMPARISON.search(text):
        return False
    return evidence != "control" or "selected" not in sides


def _carries(evidence: str, verdict: Verdict, wanted: Verdict, text: str) -> bool:
    # Better with a change is worse without it: where a sentence says without, the words may go either way.
    if evidence.startswith("ablation") and words_of.WITHOUT.search(text):
        return verdict in {Verdict.IMPROVED, Verdict.WORSE}
    return verdict is wanted


def _holds(polarity: Polarity, facts: list[Fact], rules: Rules) -> bool:
    """Say whether single runs on validation differ from the baseline's as a sentence says."""
    baseline = rules.facts.get("baseline_validation")
    values = [fact.value for fact in facts if fact.side != "baseline"]
    if baseline is None or not values:
        return False
    sign = (1 if rules.better == "higher" else -1) * (1 if polarity == "better" else -1)
    return all(
        not isinstance(value, str) and sign * (value - _number(baseline)) > 0 for value in values
    )


def _number(fact: Fact) -> float:
    return 0.0 if isinstance(fact.value, str) else float(fact.value)


# -- what is no prose


_SIGNS = frozenset(
    " .,;:!?'\"()/-%&+\u00a0\u2010\u2011\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00b7\u3002\u3001\uff0c"
)
_OPENS = re.compile(r"[\"'(\u201c\u2018]*(?:[^\W\d_]|\ufffc)")
_ENDS = re.compile(r"[.!?:\u2026\u3002][\"')\u201d\u2019]*\Z")


def _markup(sentence: Sentence, _rules: Rules) -> Iterator[tuple[Kind, str]]:
    for piece in sentence.pieces:
        if isinstance(piece, Foreign):
            yield "markup", f'it has {piece.what}: "{printable(piece.text, 60)}"; write plain text'
        elif isinstance(piece, Code) and _is_prose(piece.text):
            yield (
                "markup",
                f'"{printable(piece.text, 60)}" is no name from the code; write it without backticks',
            )
        elif isinstance(piece, Words):
            odd = [char for char in piece.text if not (char.isalnum() or char in _SIGNS)]
            odd = [char for char in odd if unicodedata.category(char) not in {"Mn", "Mc"}]
            if odd or re.search(r"https?:|www\.|://", piece.text):
                shown = printable("".join(dict.fromkeys(odd)), 20) or "an address"
                yield (
                    "markup",
                    f'plain text has nothing like "{shown}"; names from code stand in backticks',
                )


def _is_prose(code: str) -> bool:
    """Say whether words stand side by side in what is set as code, as they do in no program."""
    pairs = re.findall(r"(?=(?<![^\W\d])([^\W\d_]+)[ -]([^\W\d_]+)(?![^\W\d]))", plain_form(code))
    return any(not {one, other} & words_of.KEYWORDS for one, other in pairs)


def _language(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    plain = plain_form(sentence.words)
    words = re.findall(r"[^\W\d_]+", plain)
    longest = max(map(len, plain.split()), default=0)
    if len(sentence.source) > MAX_SENTENCE_CHARS or longest > _MAX_WORD_CHARS:
        yield "length", "it is too long for a sentence, or has a word too long for one"
    if len(words) < (MIN_PROSE_WORDS if rules.language == "en" else 2):
        yield "language", "it is no whole sentence"
    elif len(words) >= 12 and len(set(map(str.lower, words))) < _LEAST_DIFFERENT * len(words):
        yield "language", "it says the same words again and again"
    if not _in_script(plain, rules.language):
        yield "language", f"it is not in the language of the paper ({rules.language})"
    elif not _reads(plain, words, rules.language):
        yield "language", "it does not read as a sentence of that language"


def _in_script(plain: str, language: str) -> bool:
    """Say whether the letters are the language's; foreign ones would hide what can't be checked."""
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in plain if char.isalpha())
    known = {"LATIN", "GREEK"} if language == "en" else {"LATIN", "GREEK", "HANGUL", "CJK"}
    if set(scripts) - known:
        return False
    return language != "ko" or scripts["HANGUL"] >= _LEAST_HANGUL * scripts.total()


def _reads(plain: str, words: list[str], language: str) -> bool:
    if language == "ko":
        return words_of.PARTICLES.search(plain) is not None
    known = sum(word.lower() in words_of.FUNCTION_WORDS for word in words)
    return known >= max(1, _LEAST_FUNCTION_WORDS * len(words))


def _whole(block: Block) -> Iterator[Finding]:
    """Find what begins or ends in the middle of a sentence; items of a list may."""
    for sentence in block.sentences if block.kind == "paragraph" else ():
        words = sentence.words
        first = _OPENS.match(words)
        if not first or first[0][-1].islower() or not _ENDS.search(words):
            told = "it begins or ends in the middle of a sentence"
            yield Finding("language", sentence, told)


def _chatter(sentence: Sentence, rules: Rules) -> Iterator[tuple[Kind, str]]:
    plain = plain_form(sentence.source)
    if words_of.TO_REVIEWERS.search(plain):
        yield "chatter", "it tells those who judge the paper what to do; leave it out"
    if words_of.CHATTER.search(plain) or words_of.PLACEHOLDER.search(plain):
        yield "chatter", "it is no sentence of a paper; write the section's text and nothing else"
    same = squeezed(sentence.source)
    if len(same) >= _ECHO_CHARS and same in rules.instructions:
        yield "echo", "it repeats the instructions; write the section's text and nothing else"


def squeezed(text: str) -> str:
    """Give a text's letters and digits alone, to tell whether two texts say the same."""
    return re.sub(r"[\W_]+", "", plain_form(text)).lower()


_RULES: tuple[Callable[[Sentence, Rules], Iterator[tuple[Kind, str]]], ...] = (
    _numbers, _references, _units, _glued, _whose, _claims, _markup, _language, _chatter,
)  # fmt: skip
