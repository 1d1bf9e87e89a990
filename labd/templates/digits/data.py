"""The digits, and which of them are for training, validation and test."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

SPLIT_SEED = 1797
DATA_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Give the images, shape (1797, 8, 8), from 0 to 1, and their labels, shape (1797,).

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49: its test part, which scikit-learn carries.
    """
    # The file is read without importing scikit-learn, which would take longer than the training.
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != DATA_SHA256:
        raise SystemExit(f"{path} is not the file of digits that this experiment is about")
    table = np.array(
        gzip.decompress(raw).replace(b"\n", b",").rstrip(b",").split(b","), np.float32
    )
    table = table.reshape(-1, 65)
    return table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(np.int64)


def choose(labels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Give the indices to fit on and those to measure on; of each digit 50 %, 20 %, 30 %."""
    rng = np.random.default_rng(SPLIT_SEED)
    train, validation, test = [], [], []
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        first, second = round(0.5 * len(indices)), round(0.7 * len(indices))
        train.append(indices[:first])
        validation.append(indices[first:second])
        test.append(indices[second:])
    if split == "validation":
        return np.concatenate(train), np.concatenate(validation)
    return np.concatenate(train + validation), np.concatenate(test)
