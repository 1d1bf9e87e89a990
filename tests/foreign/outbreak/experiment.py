import argparse
import json
import os

import numpy as np
from scipy.integrate import odeint

parser = argparse.ArgumentParser(description="Run experiment")
parser.add_argument("--out_dir", type=str, default="run_0")


def change(state, _time, contacts, incubation_days, illness_days):
    healthy, carrying, ill, _ = state
    caught = contacts * healthy * ill
    return [
        -caught,
        caught - carrying / incubation_days,
        carrying / incubation_days - ill / illness_days,
        ill / illness_days,
    ]


if __name__ == "__main__":
    out_dir = parser.parse_args().out_dir
    os.makedirs(out_dir, exist_ok=True)
    days = np.arange(0, 120)
    course = odeint(change, [2000, 0, 3, 0], days, args=(0.0008, 10, 6))
    means = {
        "infected_peak_day": int(course[:, 2].argmax()),
        "infected_peak": float(course[:, 2].max()),
        "total_infected": float(course[-1, 3]),
    }
    info = {"town": {"means": means, "solution": course.tolist()}}
    with open(os.path.join(out_dir, "final_info.json"), "w") as file:
        json.dump(info, file)
