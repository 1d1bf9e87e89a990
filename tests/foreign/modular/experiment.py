import argparse
import json
import os

import numpy as np

parser = argparse.ArgumentParser(description="Run experiment")
parser.add_argument("--out_dir", type=str, default="run_0")
SEEDS = 2
STEPS = 150


def table(operation, prime):
    left, right = np.divmod(np.arange(prime * prime), prime)
    sums = left + right if operation == "x_plus_y" else left - right
    inputs = np.zeros((prime * prime, 2 * prime))
    inputs[np.arange(len(left)), left] = 1
    inputs[np.arange(len(left)), prime + right] = 1
    return inputs, sums % prime


def train(inputs, targets, prime, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(inputs))
    fit, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    first = rng.normal(0, 0.3, (inputs.shape[1], 48))
    second = rng.normal(0, 0.3, (48, prime))
    for _ in range(STEPS):
        hidden = np.maximum(inputs[fit] @ first, 0)
        shares = softmax(hidden @ second)
        error = (shares - np.eye(prime)[targets[fit]]) / len(fit)
        back = (error @ second.T) * (hidden > 0)
        second -= 4.0 * hidden.T @ error
        first -= 4.0 * inputs[fit].T @ back
    measured = {}
    for name, part in (("train", fit), ("val", held_out)):
        shares = softmax(np.maximum(inputs[part] @ first, 0) @ second)
        right = shares[np.arange(len(part)), targets[part]]
        measured[f"final_{name}_loss"] = float(-np.log(right + 1e-12).mean())
        measured[f"final_{name}_acc"] = float((shares.argmax(1) == targets[part]).mean())
    return measured


def softmax(scores):
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    out_dir = parser.parse_args().out_dir
    os.makedirs(out_dir, exist_ok=True)
    if out_dir == "run_0":
        data_dir = os.path.join("../../data", "primes")
    else:
        data_dir = os.path.join("../../../data", "primes")
    with open(os.path.join(data_dir, "prime.json")) as file:
        prime = json.load(file)["prime"]
    final_infos, all_results = {}, {}
    for operation in ("x_plus_y", "x_minus_y"):
        runs = [train(*table(operation, prime), prime, seed) for seed in range(SEEDS)]
        by_seed = {name: [run[name] for run in runs] for name in runs[0]}
        final_infos[operation] = {
            "means": {f"{name}_mean": float(np.mean(values)) for name, values in by_seed.items()},
            "stderrs": {
                f"{name}_stderr": float(np.std(values) / len(values))
                for name, values in by_seed.items()
            },
            "final_info_dict": by_seed,
        }
        all_results[operation] = runs
    with open(os.path.join(out_dir, "final_info.json"), "w") as file:
        json.dump(final_infos, file)
    with open(os.path.join(out_dir, "all_results.npy"), "wb") as file:
        np.save(file, all_results)
