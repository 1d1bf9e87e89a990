"""Train a diffusion model on points in the plane, shape by shape, and draw new points from it.

A run appends to curves.jsonl while it trains and leaves samples.json, which `evaluate.py` then measures. The model
is in `model.py`, the one file that may be changed.

The seed decides the first weights and all noise. It does not touch the points to learn from, which are those of the
split: validation and test have different ones, and a run sees one of them.
"""

import argparse
import json
import os
from pathlib import Path

from data import SHAPES, distance, draw_reference, draw_training

# cuBLAS gives the same sums in each run only where it has been told so before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
from model import Diffusion

POINTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    params = json.loads(args.params.read_text())
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    samples = {}
    with (args.out_dir / "curves.jsonl").open("w", buffering=1) as curves:
        for shape in SHAPES:
            torch.manual_seed(args.seed)
            samples[shape] = learn(args.split, shape, params, curves)
    (args.out_dir / "samples.json").write_text(json.dumps(samples))


def learn(split: str, shape: str, params: dict, curves) -> list[list[float]]:
    """Train on the points of one shape and give as many new ones as are asked for."""
    updates, number = int(os.environ["UPDATES"]), int(os.environ["SAMPLES"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = draw_training(split, shape, int(os.environ["TRAINING_POINTS"]))
    points = torch.from_numpy(training).float().to(device)
    model = Diffusion(params, int(os.environ["WIDTH"]), int(os.environ["NOISE_STEPS"]), device)
    total, every = 0.0, max(1, updates // POINTS)
    for update in range(1, updates + 1):
        total += float(model.update(points, (update - 1) / updates))
        if update % every == 0:
            curves.write(json.dumps({"step": update, f"{shape}_train_loss": total / every}) + "\n")
            total = 0.0
    found = model.sample(number).double().cpu().numpy()
    if split == "validation":
        # The last place of a curve; the evaluation measures again, with the file as the run left it.
        far = distance(found, draw_reference(split, shape))
        curves.write(json.dumps({"step": updates, f"{shape}_validation_distance": far}) + "\n")
    print(f"{split}, {shape}: {updates} updates on {device}, {number} points drawn")
    return found.tolist()


if __name__ == "__main__":
    main()
