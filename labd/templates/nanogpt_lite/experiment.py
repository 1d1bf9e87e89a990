"""Train a small language model on a made language and write what it expects to come next.

A run appends to curves.jsonl while it trains and leaves predictions.json, which `evaluate.py` then measures. The
model is in `model.py`, the one file that may be changed.

The seed decides the first weights, which pieces of text are read, and all other chance. It does not touch the language
and its text, which are those of the split: validation and test are two languages, and a run sees one of them.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from data import ALPHABET, cross_entropy, draw_contexts, draw_language, draw_text, next_shares

# cuBLAS gives the same sums in each run only where it has been told so before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
from model import Learner

POINTS = 10
FEW = 100
AT_ONCE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()

    size = {name: int(os.environ[name.upper()]) for name in ("width", "layers", "context")}
    updates = int(os.environ["UPDATES"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.manual_seed(args.seed)
    language = draw_language(args.split, int(os.environ["TOPICS"]), int(os.environ["WORDS"]))
    text = draw_text(language, args.split, int(os.environ["CHARACTERS"]))
    contexts = draw_contexts(language, args.split, int(os.environ["CONTEXTS"]), size["context"])
    few = contexts[:FEW]
    truth = next_shares(language, few) if args.split == "validation" else None

    learner = Learner(json.loads(args.params.read_text()), size, len(ALPHABET), device)
    read = torch.from_numpy(text).to(device)
    with (args.out_dir / "curves.jsonl").open("w", buffering=1) as curves:
        for update in range(1, updates + 1):
            loss = learner.update(read, (update - 1) / updates)
            if update % max(1, updates // POINTS) == 0:
                point = {"step": update, "train_bits": float(loss) / float(np.log(2))}
                if truth is not None:
                    point["validation_bits"] = cross_entropy(truth, predict(learner, few, device))
                curves.write(json.dumps(point) + "\n")
    predicted = predict(learner, contexts, device)
    (args.out_dir / "predictions.json").write_text(json.dumps(predicted.tolist()))
    print(f"{args.split}: {updates} updates on {device}, {len(contexts)} contexts read")


def predict(learner: Learner, contexts: np.ndarray, device: torch.device) -> np.ndarray:
    """Give the expected shares of the next character, shape (n, characters); a model sees only what comes before."""
    parts = np.array_split(contexts, -(-len(contexts) // AT_ONCE))
    found = [learner.predict(torch.from_numpy(part).to(device)) for part in parts]
    shares = torch.cat(found).double().cpu().numpy()
    return shares / shares.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
