"""Measure how well a run knew what comes next, against the true shares of the made language.

labd starts this after `experiment.py`, in a sandbox of its own in which the template's files are as its author
wrote them. It reads shares as plain JSON and needs no torch.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from data import ALPHABET, cross_entropy, draw_contexts, draw_language, next_shares

MAX_BYTES = 16 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    language = draw_language(args.split, int(os.environ["TOPICS"]), int(os.environ["WORDS"]))
    number, length = int(os.environ["CONTEXTS"]), int(os.environ["CONTEXT"])
    truth = next_shares(language, draw_contexts(language, args.split, number, length))
    predicted = checked(read_predictions(args.run_dir / "predictions.json"), number)
    bits, floor = cross_entropy(truth, predicted), cross_entropy(truth, truth)
    metrics = {"bits_per_character": bits, "floor": floor}
    (args.out_dir / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    print(f"{args.split}: {bits:.4f} bits a character, {floor:.4f} at best, {number} contexts")


def read_predictions(path: Path) -> list:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise SystemExit("predictions.json is not there, or has more than 16 MiB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"predictions.json is not JSON: {error}") from error


def checked(rows: list, number: int) -> np.ndarray:
    """Give the rows as shares, shape (number, characters), each row summing to 1."""
    if not isinstance(rows, list) or len(rows) != number:
        raise SystemExit(f"predictions.json is not a list of {number} rows")
    for row in rows:
        numbers = isinstance(row, list) and all(type(share) is float for share in row)
        if not numbers or len(row) != len(ALPHABET):
            raise SystemExit(f"predictions.json has a row that is not {len(ALPHABET)} shares")
    shares = np.array(rows)
    if not (np.all(shares >= 0) and np.all(np.abs(shares.sum(axis=1) - 1) < 1e-6)):
        raise SystemExit("predictions.json has a row that is negative or does not sum to 1")
    return shares


if __name__ == "__main__":
    main()
