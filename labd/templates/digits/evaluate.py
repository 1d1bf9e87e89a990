"""Compare what a run predicted with the labels, and write the share that is right.

labd starts this after `experiment.py`, in a sandbox of its own in which the template's files are as its author
wrote them. It reads predictions as plain JSON: a format that can hold code, such as pickle, would let a changed
model write its own result.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from data import choose, load_digits

MAX_BYTES = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    _, labels = load_digits()
    _, held_out = choose(labels, args.split)
    value = accuracy(read_predictions(args.run_dir / "predictions.json"), labels[held_out])
    (args.out_dir / "metrics.json").write_text(json.dumps({"metrics": {"accuracy": value}}))
    print(f"accuracy on {args.split}: {value:.4f}, {len(held_out)} images")


def read_predictions(path: Path) -> list:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise SystemExit("predictions.json is not there, or has more than 1 MiB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"predictions.json is not JSON: {error}") from error


def accuracy(predicted: list, labels: np.ndarray) -> float:
    """Give the share of the images that got their right label."""
    if not isinstance(predicted, list) or len(predicted) != len(labels):
        raise SystemExit(f"predictions.json is not a list of {len(labels)} labels")
    if not all(type(label) is int and 0 <= label <= 9 for label in predicted):
        raise SystemExit("predictions.json holds something that is no label from 0 to 9")
    return float(np.mean(np.array(predicted) == labels))


if __name__ == "__main__":
    main()
