"""The equations: tables of modular arithmetic, written in symbols whose meaning is not told. Needs numpy only.

Each split has a world of its own, drawn from a seed of its own: which symbol stands for which number, and
which equations are shown. What has been learnt of one says nothing of the other.
"""

from dataclasses import dataclass

import numpy as np

SPLIT_SEEDS = {"validation": 9701, "test": 9702}


@dataclass(frozen=True)
class World:
    """Equations `left ∘ right = answer`, each symbol a whole number below the modulus."""

    shown: np.ndarray
    """Pairs (left, right) to learn from, shape (n, 2)."""
    shown_answers: np.ndarray
    hidden: np.ndarray
    """Pairs whose answer has to be found, shape (m, 2); none of them is shown."""
    hidden_answers: np.ndarray


def draw_world(split: str, operation: str, modulus: int, shown_percent: int) -> World:
    """Give the equations of a split; the same at each call.

    Args:
        operation: `add`, `subtract`, `divide` or `squares`.
        modulus: a prime, so that there is a division; the number of symbols.

    Source: Power et al. (2022), Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets, table of
    operations in appendix A.1, https://arxiv.org/abs/2201.02177.

    """
    left, right = np.divmod(np.arange(modulus**2), modulus)
    answers = calculate(operation, left, right, modulus)
    known = answers >= 0
    left, right, answers = left[known], right[known], answers[known]
    rng = np.random.default_rng([SPLIT_SEEDS[split], modulus, *operation.encode()])
    symbols = rng.permutation(modulus)
    pairs, answers = np.stack([symbols[left], symbols[right]], axis=1), symbols[answers]
    order = rng.permutation(len(pairs))
    shown, hidden = np.split(order, [round(shown_percent / 100 * len(order))])
    return World(pairs[shown], answers[shown], pairs[hidden], answers[hidden])


def calculate(operation: str, left: np.ndarray, right: np.ndarray, modulus: int) -> np.ndarray:
    """Give the answers modulo a prime; -1 where there is none, as for a division by zero."""
    if operation == "add":
        return (left + right) % modulus
    if operation == "subtract":
        return (left - right) % modulus
    if operation == "squares":
        return (left**2 + right**2) % modulus
    if operation == "divide":
        # Fermat's little theorem: the inverse of x modulo a prime p is x**(p - 2).
        inverse = np.array([pow(int(value), modulus - 2, modulus) for value in right])
        return np.where(right == 0, -1, left * inverse % modulus)
    raise SystemExit(f"there is no operation {operation!r}")
