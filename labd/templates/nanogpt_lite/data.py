"""A made language whose next character is known as well as it can be. Needs numpy only.

Sentences of made words: a sentence has a topic, which is never written; each word depends on the topic and on the
word before. So what has been read tells of the topic, and the topic of what comes. The true probability of each next
character can be calculated, and with it the lowest possible loss.

Each split has a language of its own, drawn with its text from a seed of its own.
"""

from dataclasses import dataclass

import numpy as np

SPLIT_SEEDS = {"validation": 3501, "test": 3502}
ALPHABET = " .abdegiklmnoprstu"
SPACE, STOP = ALPHABET.index(" "), ALPHABET.index(".")
END_SHARE = 0.12
"""Of words, those that end a sentence."""
TOPIC_SHARE = 0.5
"""Of the words, those that the topic chooses; the others follow from the word before."""
LEAST_SHARE = 1e-9


@dataclass(frozen=True)
class Language:
    """Words, and how likely each is; T topics, W words."""

    spellings: list[tuple[int, ...]]
    """Each word's characters, as places in `ALPHABET`."""
    by_topic: np.ndarray
    """Shape (T, W), each row sums to 1."""
    by_previous: np.ndarray
    """Shape (W + 1, W); the last row is for the first word of a sentence."""

    def word_shares(self, previous: int, word: int | slice = slice(None)) -> np.ndarray:
        """Give the probability of a word, shape (T,), or of each, (T, W), after a word, or W where a sentence starts."""
        by_topic, by_previous = self.by_topic[:, word], self.by_previous[previous, word]
        return TOPIC_SHARE * by_topic + (1 - TOPIC_SHARE) * by_previous


def draw_language(split: str, topics: int, words: int) -> Language:
    """Give the language of a split; the same at each call."""
    rng = _generator(split, 0, topics, words)
    spellings: dict[tuple[int, ...], None] = {}
    while len(spellings) < words:
        syllables = rng.integers(1, 4)
        text = "".join(
            rng.choice(list("bdgklmnprst")) + rng.choice(list("aeiou")) for _ in range(syllables)
        )
        text += rng.choice(["", "n", "s", "r"])
        spellings[tuple(ALPHABET.index(letter) for letter in text)] = None
    # A small concentration: each topic and each word has few words that it likes.
    by_topic = rng.dirichlet(np.full(words, 0.05), topics)
    by_previous = rng.dirichlet(np.full(words, 0.05), words + 1)
    return Language(list(spellings), by_topic, by_previous)


def draw_text(language: Language, split: str, length: int) -> np.ndarray:
    """Give a text to learn from, as places in `ALPHABET`, shape (length,)."""
    return _write(language, _generator(split, 1, length), length)


def draw_contexts(language: Language, split: str, number: int, length: int) -> np.ndarray:
    """Give beginnings of texts, shape (number, length), each from the start of a sentence."""
    rng = _generator(split, 2, number, length)
    return np.stack([_write(language, rng, length) for _ in range(number)])


def next_shares(language: Language, contexts: np.ndarray) -> np.ndarray:
    """Give the true probability of each next character, shape (n, characters), after contexts from `draw_contexts`.

    Source: the forward algorithm, Rabiner (1989), A Tutorial on Hidden Markov Models, section III.A,
    https://doi.org/10.1109/5.18626; a topic does not change within its sentence.

    """
    known = {spelling: index for index, spelling in enumerate(language.spellings)}
    return np.stack([_next(language, known, row.tolist()) for row in contexts])


def cross_entropy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Give the mean loss in bits a character of predictions, shapes (n, characters), when the truth is known.

    It is the expectation over all that may come next, so that no draw adds noise. It is never below the entropy
    (Gibbs' inequality), which is `cross_entropy(truth, truth)`. No share counts as less than 1e-9.
    """
    usable = np.maximum(predicted, LEAST_SHARE)
    usable = usable / usable.sum(axis=1, keepdims=True)
    return float(-(truth * np.log2(usable)).sum(axis=1).mean())


def _generator(split: str, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([SPLIT_SEEDS[split], *purpose])


def _write(language: Language, rng: np.random.Generator, length: int) -> np.ndarray:
    topics, words = language.by_topic.shape
    topic_sums = language.by_topic.cumsum(axis=1)
    previous_sums = language.by_previous.cumsum(axis=1)
    text: list[int] = []
    topic, previous = rng.integers(topics), words
    while len(text) < length:
        of_topic, ends, share = rng.random(3)
        sums = topic_sums[topic] if of_topic < TOPIC_SHARE else previous_sums[previous]
        word = min(int(sums.searchsorted(share, side="right")), words - 1)
        text += language.spellings[word]
        if ends < END_SHARE:
            text.append(STOP)
            topic, previous = rng.integers(topics), words
        else:
            text.append(SPACE)
            previous = word
    return np.array(text[:length])


def _next(language: Language, known: dict[tuple[int, ...], int], text: list[int]) -> np.ndarray:
    topics, words = language.by_topic.shape
    belief, previous, start = np.full(topics, 1 / topics), words, 0
    for place, character in enumerate(text):
        if character == STOP:
            belief, previous, start = np.full(topics, 1 / topics), words, place + 1
        elif character == SPACE:
            word = known[tuple(text[start:place])]
            belief = belief * language.word_shares(previous, word)
            belief, previous, start = belief / belief.sum(), word, place + 1
    begun = tuple(text[start:])
    shares = np.zeros(len(ALPHABET))
    for spelling, share in zip(
        language.spellings, belief @ language.word_shares(previous), strict=True
    ):
        if spelling[: len(begun)] != begun:
            continue
        if len(spelling) > len(begun):
            shares[spelling[len(begun)]] += share
        else:
            shares[SPACE] += share * (1 - END_SHARE)
            shares[STOP] += share * END_SHARE
    return shares / shares.sum()
