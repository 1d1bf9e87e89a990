import json
import os

import matplotlib.pyplot as plt

labels = {"run_0": "Baseline"}
for name in os.listdir("./"):
    if name.startswith("run") and os.path.isdir(name):
        with open(os.path.join(name, "final_info.json")) as file:
            course = json.load(file)["town"]["solution"]
        plt.figure()
        plt.plot([day[2] for day in course], label=labels[name])
        plt.legend()
        plt.savefig(f"outbreak_{name}.png")
        plt.close()
