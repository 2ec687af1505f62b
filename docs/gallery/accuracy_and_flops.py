"""
Accuracy against FLOPs
======================

This picture shows the accuracy of each method and the cost of its training, measured on CIFAR-10
by a *reduced* protocol. The script trains nothing: it reads the results file of the benchmark. This
file is part of the repository, so the script needs a clone of the repository.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

# %%
# One line of the file is one run.

ROOT = Path(sys.argv[0]).absolute().parents[2]
FILE = ROOT / "benchmarks" / "cifar" / "results" / "cpu" / "results.jsonl"
runs = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
protocol = runs[-1]["protocol"]
print(protocol["label"])
print(protocol["description"])

# %%
# A mark is the mean over the seeds, a bar the standard deviation. Left is cheaper, up is better.
# Runs of the studies, with other settings than the protocol's own, are left out.

SHOWN = {"density": (None, 0.1), "init": (None, "erk")}
found = defaultdict(list)
for run in runs:
    choices = dict(run["run"])
    method, _ = choices.pop("method"), choices.pop("seed")
    if all(value in SHOWN.get(name, (None,)) for name, value in choices.items()):
        found[method].append(run)

figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
for number, (method, group) in enumerate(sorted(found.items())):
    accuracies = [100 * run["accuracy"]["test"] for run in group]
    cost = statistics.mean(run["flops"]["train"] / run["flops"]["dense_train"] for run in group)
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    axes.errorbar(
        cost, statistics.mean(accuracies), yerr=deviation,
        fmt="osD^v<>pP"[number % 9], capsize=3, label=f"{method} ({len(group)} seeds)",
    )  # fmt: skip
axes.set_xscale("log")
axes.set_xticks([0.1, 0.2, 0.3, 0.5, 1], ["0.1", "0.2", "0.3", "0.5", "1"])
axes.minorticks_off()
axes.set_xlabel("FLOPs of the training, as a multiple of dense training")
axes.set_ylabel("test accuracy, %")
axes.set_title(f"Density 0.1 with ERK, {protocol['label']}")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %%
# These are the FLOPs that masks leave, not time. ``small-dense`` is a dense network with about as
# many weights. :doc:`/results/reproduction` says what reduced means, has every figure with its
# hardware, and compares with the published numbers.
