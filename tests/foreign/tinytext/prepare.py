import math
import os

TIME_BUDGET = 5
CACHE_DIR = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch")


def load(split):
    with open(os.path.join(CACHE_DIR, "data", f"{split}.txt"), "rb") as file:
        return file.read()


def evaluate_bpb(probability):
    text = load("val")
    bits = -sum(math.log2(probability(text[i - 1], text[i])) for i in range(1, len(text)))
    return bits / (len(text) - 1)
