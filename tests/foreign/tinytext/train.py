import time

from prepare import TIME_BUDGET, evaluate_bpb, load

SMOOTHING = 1.0

start = time.time()
text = load("train")
counts = [[0] * 256 for _ in range(256)]
steps = 0
for before, after in zip(text, text[1:]):
    if time.time() - start > TIME_BUDGET:
        break
    counts[before][after] += 1
    steps += 1
totals = [sum(row) for row in counts]
val_bpb = evaluate_bpb(
    lambda before, after: (counts[before][after] + SMOOTHING) / (totals[before] + 256 * SMOOTHING)
)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {time.time() - start:.1f}")
print(f"num_steps:        {steps}")
