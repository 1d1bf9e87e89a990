"""Train a small network on real handwritten digits and write what it reads.

This is the experiment of the template `digits`, and an example for your own. A run gets its parameters, a seed
and a split; it appends to curves.jsonl while it trains and leaves predictions.json, which `evaluate.py` then
measures. The network is in `model.py`, the one file that may be changed.

    --split validation   fit on train, predict validation; the test images are not looked at
    --split test         fit on train and validation together, predict test

The seed decides the first weights, the order of the images and all noise. It does not touch the
split, which is the same in all runs, so that runs differ by their parameters and their luck only.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from data import choose, load_digits
from model import Network

EPOCHS = 60


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
    with (args.out_dir / "curves.jsonl").open("w", buffering=1) as curves:
        for step in range(EPOCHS):
            loss, accuracy = model.train_epoch(images[fit], labels[fit])
            point = {"step": step, "train_loss": float(loss), "train_accuracy": float(accuracy)}
            if args.split == "validation":
                right = model.predict(images[held_out]) == labels[held_out]
                point["validation_accuracy"] = float(np.mean(right))
            curves.write(json.dumps(point) + "\n")
    predicted = [int(label) for label in model.predict(images[held_out])]
    (args.out_dir / "predictions.json").write_text(json.dumps(predicted))
    print(f"{args.split}: predicted {len(predicted)} images")


if __name__ == "__main__":
    main()
