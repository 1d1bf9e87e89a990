"""Show a network a part of a table of modular arithmetic and let it fill in the rest.

A run appends to curves.jsonl while it trains and leaves predictions.json, which `evaluate.py` then measures. The
network is in `model.py`, the one file that may be changed.

The seed decides the first weights and all other chance. It does not touch the equations, which are those of the split:
validation and test are different worlds, and a run sees one of them.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from data import draw_world

# cuBLAS gives the same sums in each run only where it has been told so before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
from model import Learner

POINTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    params = json.loads(args.params.read_text())
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    predictions = {}
    with (args.out_dir / "curves.jsonl").open("w", buffering=1) as curves:
        for operation in os.environ["OPERATIONS"].split():
            torch.manual_seed(args.seed)
            predictions[operation] = learn(args.split, operation, params, curves)
    (args.out_dir / "predictions.json").write_text(json.dumps(predictions))


def learn(split: str, operation: str, params: dict, curves) -> list[int]:
    """Train on what is shown of one table and give the answers to what is hidden."""
    modulus, updates = int(os.environ["MODULUS"]), int(os.environ["UPDATES"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = draw_world(split, operation, modulus, int(os.environ["SHOWN_PERCENT"]))
    shown = torch.from_numpy(world.shown).to(device)
    answers = torch.from_numpy(world.shown_answers).to(device)
    hidden = torch.from_numpy(world.hidden).to(device)
    learner = Learner(params, int(os.environ["WIDTH"]), modulus, device)
    for update in range(1, updates + 1):
        loss = learner.update(shown, answers)
        if update % max(1, updates // POINTS) == 0 or update == updates:
            point = {"step": update, f"{operation}_train_loss": float(loss)}
            point[f"{operation}_train_accuracy"] = share(learner, shown, world.shown_answers)
            if split == "validation":
                right = share(learner, hidden, world.hidden_answers)
                point[f"{operation}_validation_accuracy"] = right
            curves.write(json.dumps(point) + "\n")
    print(f"{split}, {operation}: {updates} updates on {device}, last loss {float(loss):.4f}")
    return [int(answer) for answer in learner.predict(hidden)]


def share(learner: Learner, pairs: torch.Tensor, answers: np.ndarray) -> float:
    return float(np.mean(learner.predict(pairs).cpu().numpy() == answers))


if __name__ == "__main__":
    main()
