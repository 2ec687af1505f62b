"""
Densities by layer
==================

These pictures show how ``init="uniform"``, ``"er"`` and ``"erk"`` divide the same number of live
weights among the layers of a residual network.
"""

import math

import matplotlib.pyplot as plt

from sparseopt.distributions import er, erk, uniform

# %%
# The shapes of the weights of a WRN-22-2 for images of ten classes. A distribution needs only the
# shapes.

shapes = {"conv1": (16, 3, 3, 3)}
channels = 16
for group, width in enumerate((32, 64, 128)):
    for block in range(3):
        name = f"{group}.{block}"
        shapes[f"{name}.conv1"] = (width, channels, 3, 3)
        shapes[f"{name}.conv2"] = (width, width, 3, 3)
        if channels != width:
            shapes[f"{name}.shortcut"] = (width, channels, 1, 1)
        channels = width
shapes["fc"] = (10, 128)
numel = {name: math.prod(shape) for name, shape in shapes.items()}

# %%
# Density of each layer
# ---------------------
#
# A tenth of all weights is live. ERK gives smaller layers a higher density, so the large 3x3
# convolutions of the last group get less. ER ignores the size of the kernel: a 1x1 shortcut gets
# the same density as a 3x3 convolution of as many channels.

DENSITY = 0.1
COLOURS = {"uniform": "tab:gray", "er": "tab:orange", "erk": "tab:blue"}
MARKS = {"uniform": "s", "er": "^", "erk": "o"}
densities = {one.__name__: one(shapes, DENSITY) for one in (uniform, er, erk)}

figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
for name, by_layer in densities.items():
    axes.plot(
        by_layer.values(), MARKS[name], color=COLOURS[name], label=name, linestyle="-", lw=0.8
    )
axes.set_yscale("log")
axes.set_ylim(bottom=0.04)
axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
axes.set_xticks(range(len(shapes)), shapes, rotation=90)
axes.set_ylabel("density of the layer")
axes.set_title(f"WRN-22-2 at density {DENSITY}")
axes.legend(loc="lower left", ncols=3)
plt.show()

# %%
# Live weights of each layer
# --------------------------
#
# This picture shows the same in numbers of weights. ERK divides live weights more evenly among
# layers than uniform densities do.

figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
for place, (name, by_layer) in enumerate(densities.items()):
    live = [share * numel[layer] for layer, share in by_layer.items()]
    bars = [index + 0.27 * (place - 1) for index in range(len(live))]
    axes.bar(bars, live, width=0.27, color=COLOURS[name], label=name)
axes.set_xticks(range(len(shapes)), shapes, rotation=90)
axes.set_ylabel("live weights of the layer")
axes.legend()
plt.show()

# %%
# :doc:`/how-to/init` says what this means for FLOPs, and when to choose which.
