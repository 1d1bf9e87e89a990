"""The network and how it is trained: the file of this template that may be changed.

`experiment.py` makes a `Network` of the parameters and a generator that carries the run's seed, calls
`train_epoch` sixty times with the same images and labels, and at the end asks for `predict`. What is predicted is
then compared with the labels by `evaluate.py`; nothing else that happens here counts.
"""

import numpy as np


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

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Give the label of each image, shape (n,), from 0 to 9."""
        w1, b1, w2, b2 = self.layers
        scores = np.maximum(images.reshape(-1, 64) @ w1 + b1, 0) @ w2 + b2
        return scores.argmax(axis=1)

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
