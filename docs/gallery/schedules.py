"""
Schedules
=========

These pictures show when masks move, how many weights move, and how the density falls under methods
that end sparser than they start.
"""

import matplotlib.pyplot as plt
import torch

from sparseopt import SparseOptimizer, UpdateSchedule

# %%
# The share that moves
# --------------------
#
# ``alpha`` is the share of the live weights that would move at step 0. It falls until ``t_end``,
# at three quarters of the training. After that masks do not move. A mark is an update, one every
# ``delta_t`` steps.

TOTAL = 2000
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for decay, colour in (("cosine", "tab:blue"), ("linear", "tab:orange"), ("constant", "tab:gray")):
    schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=int(0.75 * TOTAL), decay=decay)
    updates = [step for step in range(1, TOTAL + 1) if schedule.is_update(step)]
    shares = [schedule.fraction(step) for step in updates]
    axes.plot(updates, shares, ".-", color=colour, lw=0.8, label=f'decay="{decay}"')
axes.axvline(schedule.t_end, color="gray", ls=":")
axes.annotate("t_end", (schedule.t_end, 0.27), xytext=(6, 0), textcoords="offset points")
axes.set(xlim=(0, TOTAL), ylim=(0, 0.32), xlabel="step", ylabel="share of live weights moved")
axes.legend(loc="lower left")
plt.show()

# %%
# The density
# -----------
#
# The density of a network during training, from the optimizer's history. Methods with a constant
# density have exactly their target. ``mest`` is a little above it until the end. ``granet`` falls
# from a half and ``pruning`` from 1, both along a cubic.


def density_over_time(method: str) -> tuple[list[int], list[float]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(
        inner, model, method=method, density=0.1, init={}, total_steps=400, delta_t=10
    )
    steps, densities = [0], [optimizer.density]
    for _ in range(400):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        steps.append(optimizer.steps)
        densities.append(optimizer.density)
    return steps, densities


figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for method in ("pruning", "granet", "mest", "rigl"):
    axes.plot(*density_over_time(method), drawstyle="steps-post", label=method)
axes.axvline(300, color="gray", ls=":")
axes.annotate("t_end", (300, 0.9), xytext=(6, 0), textcoords="offset points")
axes.set(xlim=(0, 400), ylim=(0, 1.03), xlabel="step", ylabel="density")
axes.legend()
plt.show()

# %%
# :doc:`/explanation/semantics` has the formulas, and :doc:`/how-to/schedule` says which values to
# choose.
