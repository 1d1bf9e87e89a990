"""Compare what a run answered with the right answers, and write the share that is right.

labd starts this after `experiment.py`, in a sandbox of its own in which the template's files are as its author
wrote them. It reads answers as plain JSON and needs no torch.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from data import draw_world

MAX_BYTES = 4 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    operations = os.environ["OPERATIONS"].split()
    modulus, shown_percent = int(os.environ["MODULUS"]), int(os.environ["SHOWN_PERCENT"])
    found = read_predictions(args.run_dir / "predictions.json", operations)
    shares = {}
    for operation in operations:
        world = draw_world(args.split, operation, modulus, shown_percent)
        shares[operation] = share_right(found[operation], world.hidden_answers, modulus)
        print(
            f"{operation}: {shares[operation]:.4f} of {len(world.hidden_answers)} on {args.split}"
        )
    metrics = {"accuracy": float(np.mean(list(shares.values())))}
    metrics |= {f"accuracy_{operation}": share for operation, share in shares.items()}
    (args.out_dir / "metrics.json").write_text(json.dumps({"metrics": metrics}))


def read_predictions(path: Path, operations: list[str]) -> dict[str, list]:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise SystemExit("predictions.json is not there, or has more than 4 MiB")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"predictions.json is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != set(operations):
        raise SystemExit(f"predictions.json is not an object with: {', '.join(operations)}")
    return found


def share_right(predicted: list, answers: np.ndarray, modulus: int) -> float:
    """Give the share of the hidden equations that were answered rightly, from 0 to 1."""
    if not isinstance(predicted, list) or len(predicted) != len(answers):
        raise SystemExit(f"predictions.json has no list of {len(answers)} answers")
    if not all(type(answer) is int and 0 <= answer < modulus for answer in predicted):
        raise SystemExit(f"predictions.json holds something that is no symbol below {modulus}")
    return float(np.mean(np.array(predicted) == answers))


if __name__ == "__main__":
    main()
