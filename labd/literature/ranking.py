"""How near texts are to each other, by their words alone. Pure.

Words are compared in small letters and without a plural's s; scripts that put no spaces between words are
compared by pairs of characters.
"""

import heapq
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_WORD = re.compile(r"[^\W_]+")
# Hangul, kana and ideographs, Thai, Lao, Khmer, Burmese: particles or whole sentences stick to the words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]+"
)
_K1, _B = 1.2, 0.75
_STOP_WORDS = frozenset(
    [
        *("a", "about", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been"),
        *("both", "but", "by", "can", "could", "do", "does", "for", "from", "had", "has"),
        *("have", "how", "if", "in", "into", "is", "it", "its", "may", "more", "most", "no"),
        *("not", "of", "on", "one", "only", "or", "other", "our", "over", "paper", "show"),
        *("such", "than", "that", "the", "their", "them", "then", "there", "these", "they"),
        *("this", "those", "to", "under", "up", "use", "used", "using", "via", "was", "we"),
        *("were", "what", "when", "where", "whether", "which", "while", "who", "why", "will"),
        *("with", "within", "would", "you", "propose", "proposed", "present", "study"),
        *("approach", "method", "result", "based", "new"),
    ]
)


def words(text: str) -> list[str]:
    """Give the words by which `text` is compared, in order, common ones left out."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _UNSPACED.search(word):
            found += _pairs(word)
        elif (stem := _singular(word)) not in _STOP_WORDS and word not in _STOP_WORDS:
            found.append(stem)
    return found


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _pairs(word: str) -> Iterable[str]:
    for run in _UNSPACED.findall(word):
        yield from [run[at : at + 2] for at in range(len(run) - 1)] or [run]
    yield from (part for part in _UNSPACED.split(word) if part)


class Index:
    """Texts that can be searched: BM25 over an inverted index.

    Source: S. Robertson and H. Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, with
    k1 = 1.2, b = 0.75 and the logarithm of Lucene, which is never negative.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._postings: dict[str, list[tuple[int, int]]] = {}
        self._lengths: list[int] = []
        for number, text in enumerate(texts):
            counts = Counter(words(text))
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._postings.setdefault(word, []).append((number, count))
        self._mean_length = sum(self._lengths) / max(1, len(self._lengths)) or 1.0

    def best(self, query: str, limit: int) -> list[int]:
        """Give the numbers of at most `limit` texts that share a word with `query`, the nearest first."""
        scores: dict[int, float] = {}
        for word in dict.fromkeys(words(query)):
            for number, gain in self._gains(self._postings.get(word, [])):
                scores[number] = scores.get(number, 0.0) + gain
        best = heapq.nsmallest(limit, ((-score, number) for number, score in scores.items()))
        return [number for _, number in best]

    def _gains(self, postings: Sequence[tuple[int, int]]) -> Iterable[tuple[int, float]]:
        rest = len(self._lengths) - len(postings)
        rarity = math.log1p((rest + 0.5) / (len(postings) + 0.5))
        for number, count in postings:
            norm = _K1 * (1 - _B + _B * self._lengths[number] / self._mean_length)
            yield number, rarity * count * (_K1 + 1) / (count + norm)


def similarities(text: str, others: Sequence[str]) -> list[float]:
    """Give how near each of `others` is to `text`, from 0 to 1: the cosine of their TF-IDF vectors.

    Counts go in as 1 + ln(count), rarities as ln((1 + n) / (1 + with it)) + 1 over all of the texts.
    """
    counts = [Counter(words(one)) for one in (text, *others)]
    frequency = Counter(word for one in counts for word in one)
    rarity = {
        word: math.log((1 + len(counts)) / (1 + number)) + 1 for word, number in frequency.items()
    }
    vectors = [_unit(one, rarity) for one in counts]
    return [_dot(vectors[0], other) for other in vectors[1:]]


def _unit(counts: Mapping[str, int], rarity: Mapping[str, float]) -> dict[str, float]:
    weights = {word: (1 + math.log(count)) * rarity[word] for word, count in counts.items()}
    length = math.sqrt(math.fsum(weight * weight for weight in weights.values())) or 1.0
    return {word: weight / length for word, weight in weights.items()}


def _dot(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    product = math.fsum(weight * other.get(word, 0.0) for word, weight in one.items())
    return min(1.0, max(0.0, product))
