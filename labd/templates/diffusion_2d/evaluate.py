"""Measure how far the points that a run drew are from others of the same shape.

labd starts this after `experiment.py`, in a sandbox of its own in which the template's files are as its author
wrote them. It reads points as plain JSON and needs no torch.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from data import SHAPES, distance, draw_reference

MAX_BYTES = 16 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    number = int(os.environ["SAMPLES"])
    samples = read_samples(args.run_dir / "samples.json")
    metrics, floors = {}, []
    for shape in SHAPES:
        reference = draw_reference(args.split, shape)
        metrics[f"distance_{shape}"] = distance(checked(samples[shape], number), reference)
        floors.append(distance(draw_reference(args.split, shape, part=1)[:number], reference))
    whole = {"distance": float(np.mean(list(metrics.values()))), "floor": float(np.mean(floors))}
    (args.out_dir / "metrics.json").write_text(json.dumps({"metrics": whole | metrics}))
    print(
        f"distance on {args.split}: {whole['distance']:.4f}; of true points {whole['floor']:.4f}"
    )


def read_samples(path: Path) -> dict[str, list]:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise SystemExit("samples.json is not there, or has more than 16 MiB")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"samples.json is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != set(SHAPES):
        raise SystemExit(f"samples.json is not an object with: {', '.join(SHAPES)}")
    return found


def checked(points: list, number: int) -> np.ndarray:
    """Give the points of a shape as an array (number, 2), all of them finite."""
    if not isinstance(points, list) or len(points) != number:
        raise SystemExit(f"samples.json has no list of {number} points")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or {type(x) for x in point} != {float}:
            raise SystemExit("samples.json holds something that is no pair of decimal numbers")
    array = np.array(points)
    if not np.all(np.abs(array) < 1e6):
        raise SystemExit("samples.json holds a coordinate that is not finite, or beyond a million")
    return array


if __name__ == "__main__":
    main()
