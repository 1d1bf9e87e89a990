"""Train a small network on real handwritten digits and write how well it did.

This is the experiment of the template `digits`, and an example for your own. A run gets its
parameters, a seed and a split, and leaves one file, metrics.json. Nothing else is asked of it.

    --split validation   fit on train, measure on validation; the test images are not looked at
    --split test         fit on train and validation together, measure on test

The seed decides the first weights, the order of the images and all noise. It does not touch the
split, which is the same in all runs, so that runs differ by their parameters and their luck only.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np

EPOCHS = 60
SPLIT_SEED = 1797
DATA_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    params = json.loads(args.params.read_text())
    images, labels = load_digits()
    fit, held_out = choose(labels, args.split)
    model = Network(params, np.random.default_rng(args.seed))
    curves = {"train_loss": [], "train_accuracy": []}
    if args.split == "validation":
        curves["validation_accuracy"] = []
    for _ in range(EPOCHS):
        loss, accuracy = model.train_epoch(images[fit], labels[fit])
        curves["train_loss"].append(loss)
        curves["train_accuracy"].append(accuracy)
        if args.split == "validation":
            curves["validation_accuracy"].append(
                model.accuracy(images[held_out], labels[held_out])
            )
    value = model.accuracy(images[held_out], labels[held_out])
    result = {"metrics": {"accuracy": value}, "curves": curves}
    (args.out_dir / "metrics.json").write_text(json.dumps(result))
    print(f"accuracy on {args.split}: {value:.4f}, {len(held_out)} images")


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


class Network:
    """64 inputs, one hidden layer of rectified units, 10 outputs; trained with AdamW.

    Source: Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, algorithm 2.
    """

    def __init__(self, params: dict, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rate = params["learning_rate"]
        self.batch_size = params["batch_size"]
        self.decay = params["weight_decay"]
        self.dropout = params["dropout"]
        self.smoothing = params["label_smoothing"]
        self.shift = params["shift_probability"]
        hidden = params["hidden_units"]
        # All weights are views of one array, so that a step of Adam is a few operations.
        self.flat = np.zeros(64 * hidden + hidden + hidden * 10 + 10, np.float32)
        self.layers = self._views(self.flat, hidden)
        for weights, fan_in in ((self.layers[0], 64), (self.layers[2], hidden)):
            weights[...] = rng.normal(0, np.sqrt(2 / fan_in), weights.shape)
        self.gradient = np.zeros_like(self.flat)
        self.slopes = self._views(self.gradient, hidden)
        self.mean, self.square, self.steps = np.zeros_like(self.flat), np.zeros_like(self.flat), 0

    @staticmethod
    def _views(flat: np.ndarray, hidden: int) -> list[np.ndarray]:
        parts = np.split(flat, np.cumsum([64 * hidden, hidden, hidden * 10]))
        return [parts[0].reshape(64, hidden), parts[1], parts[2].reshape(hidden, 10), parts[3]]

    def train_epoch(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Go once through the images; give the mean loss and the accuracy of the batches passed."""
        order = self.rng.permutation(len(images))
        inputs = self._shifted(images)[order].reshape(-1, 64)
        labels = labels[order]
        loss, right = 0.0, 0
        for start in range(0, len(order), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            batch_loss, batch_right = self._step(inputs[chunk], labels[chunk])
            loss += batch_loss
            right += batch_right
        return loss / len(order), right / len(order)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Give the share of the images that get their right label."""
        w1, b1, w2, b2 = self.layers
        scores = np.maximum(images.reshape(-1, 64) @ w1 + b1, 0) @ w2 + b2
        return float(np.mean(scores.argmax(axis=1) == labels))

    def _shifted(self, images: np.ndarray) -> np.ndarray:
        """Move a random part of the images by up to one pixel each way, filled up with paper."""
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
        offsets = self.rng.integers(0, 3, (2, len(images)))
        moved = self.rng.random(len(images)) < self.shift
        rows, columns = np.where(moved, offsets, 1)  # offset 1 is the middle: not moved
        return windows[np.arange(len(images)), rows, columns]

    def _step(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        w1, b1, w2, b2 = self.layers
        hidden = np.maximum(inputs @ w1 + b1, 0)
        if self.dropout:
            kept = self.rng.random(hidden.shape, np.float32) >= self.dropout
            hidden *= kept / np.float32(1 - self.dropout)
        scores = hidden @ w2 + b2
        scores -= scores.max(axis=1, keepdims=True)
        shares = np.exp(scores)
        shares /= shares.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = -np.log(shares[rows, labels] + 1e-12).sum()
        right = int((shares.argmax(axis=1) == labels).sum())

        error = shares - np.float32(self.smoothing / 10)
        error[rows, labels] -= np.float32(1 - self.smoothing)
        error /= len(labels)
        back = error @ w2.T
        back *= hidden > 0
        if self.dropout:
            back /= np.float32(1 - self.dropout)
        np.matmul(inputs.T, back, out=self.slopes[0])
        np.sum(back, axis=0, out=self.slopes[1])
        np.matmul(hidden.T, error, out=self.slopes[2])
        np.sum(error, axis=0, out=self.slopes[3])
        self._adamw()
        return float(loss), right

    def _adamw(self, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.steps += 1
        self.mean += (1 - beta1) * (self.gradient - self.mean)
        self.square += (1 - beta2) * (self.gradient**2 - self.square)
        rate = self.rate * np.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        self.flat *= 1 - self.rate * self.decay
        self.flat -= rate * self.mean / (np.sqrt(self.square) + 1e-8)


if __name__ == "__main__":
    main()
