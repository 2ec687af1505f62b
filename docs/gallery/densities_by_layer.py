"""
Densities by layer
==================

How the same number of live weights is divided among the layers of a residual network by
``init="uniform"``, ``"er"`` and ``"erk"``.
"""

import math

import matplotlib.pyplot as plt

from sparseopt.distributions import er, erk, uniform

# %%
# The weights of a WRN-22-2 for images of ten classes, by their shapes. A distribution knows nothing
# else of a network.

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
# At a tenth of all weights. The smaller a layer, the more of it ERK gives, and the large 3x3
# convolutions of the last group pay for that. ER disregards the kernel: a shortcut of 1x1 gets no
# more than a convolution of as many channels.

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
# What is live in each layer
# --------------------------
#
# The same in weights. ERK divides them more evenly among layers than uniform densities do.

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
# What that means for FLOPs, and when to choose which: :doc:`/how-to/init`.
