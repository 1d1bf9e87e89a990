"""Points in the plane, drawn by formulas, and how far two sets of them are apart. Needs numpy only.

Each split has its own orientation of the shapes and its own points, all drawn from a seed of its own.
"""

import numpy as np

SPLIT_SEEDS = {"validation": 2601, "test": 2602}
SHAPES = ("spiral", "ring", "board", "knot")
NUM_REFERENCE = 20_000
NUM_DIRECTIONS = 64


def draw_training(split: str, shape: str, number: int) -> np.ndarray:
    """Give the points of a split to learn from, shape (number, 2); the same at each call."""
    return _turned(split, _draw(shape, number, _generator(split, shape, 1)))


def draw_reference(split: str, shape: str, part: int = 0) -> np.ndarray:
    """Give other points of the same shape, shape (20000, 2); another `part` gives others again."""
    return _turned(split, _draw(shape, NUM_REFERENCE, _generator(split, shape, 2 + part)))


def distance(points: np.ndarray, reference: np.ndarray) -> float:
    """Give the sliced Wasserstein-1 distance between two sets of points, in units of the plane; 0 is best.

    Along each of 64 evenly spread directions, the mean distance between the quantiles of both; then the mean.

    Source: Bonneel et al. (2015), Sliced and Radon Wasserstein Barycenters of Measures, section 3.1,
    https://doi.org/10.1007/s10851-014-0506-3.

    """
    angles = np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    ours, theirs = np.sort(points @ directions, axis=0), np.sort(reference @ directions, axis=0)
    middles = (np.arange(len(ours)) + 0.5) / len(ours) * len(theirs)
    return float(np.mean(np.abs(ours - theirs[middles.astype(int)])))


def _generator(split: str, shape: str, purpose: int) -> np.random.Generator:
    return np.random.default_rng([SPLIT_SEEDS[split], SHAPES.index(shape), purpose])


def _turned(split: str, points: np.ndarray) -> np.ndarray:
    angle = np.random.default_rng(SPLIT_SEEDS[split]).uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _draw(shape: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """Give points of a shape about 0, with a spread of about 1 each way."""
    share = rng.random(number)
    noise = rng.normal(0, 0.03, (number, 2))
    if shape == "spiral":  # two arms
        turn = 3 * np.pi * np.sqrt(share)
        radius = turn / (2 * np.pi) * rng.choice([-1, 1], number)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1) + noise
    if shape == "ring":  # of eight heaps
        angle = rng.integers(0, 8, number) * np.pi / 4
        return 1.4 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 3 * noise
    if shape == "board":  # the black squares of a board of 4 x 4, side 0.8
        column, pick = rng.integers(0, 4, number), rng.integers(0, 2, number)
        corner = np.stack([column, 2 * pick + column % 2], axis=1)
        return 0.8 * (corner + rng.random((number, 2)) - 2)
    if shape == "knot":  # a Lissajous curve
        angle = 2 * np.pi * share
        return 1.4 * np.stack([np.sin(3 * angle), np.sin(2 * angle)], axis=1) + noise
    raise SystemExit(f"there is no shape {shape!r}")
