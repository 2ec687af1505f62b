"""
What an update does to a layer
==============================

These pictures show one layer of 16 by 24 weights before, during and after an update of RigL. The
smallest live weights drop, and as many weights grow where the gradient is largest.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from sparseopt import SparseOptimizer

# %%
# Train for a while, and stop before the update step, when its gradient is there. The gradient is
# dense, so it includes the weights that are not live.

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
optimizer = SparseOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), model,
    method="rigl", density=0.25, init={}, total_steps=400, delta_t=50, seed=0,
)  # fmt: skip
teacher = torch.randn(3, 24)
weight = model[0].weight


def backward() -> None:
    inputs = torch.randn(64, 24)
    optimizer.zero_grad()
    (model(inputs) - torch.tanh(inputs @ teacher.T)).square().mean().backward()


backward()
while not optimizer.is_update_step:
    optimizer.step()
    backward()

before, mask = weight.detach().clone(), optimizer.masks["0.weight"].clone()
gradient = weight.grad.clone()
optimizer.step()
after, new_mask = weight.detach().clone(), optimizer.masks["0.weight"].clone()

# %%
# Left to right: the weights, the size of the gradient, and the change of each weight. A weight that
# drops and has one of the largest gradients grows again at once, and counts as kept here.

kept, dropped, grown = mask & new_mask, mask & ~new_mask, ~mask & new_mask
fate = torch.zeros(mask.shape)
for number, which in enumerate((kept, dropped, grown), start=1):
    fate[which] = number
COLOURS = ["#80808030", "tab:blue", "tab:red", "tab:green"]
LABELS = ["not live", "kept", "dropped", "grown"]


def blank(values: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~live, float("nan"))


limit = before.abs().max().item()
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
shown = left.imshow(blank(before, mask), cmap="coolwarm", vmin=-limit, vmax=limit)
figure.colorbar(shown, ax=left, shrink=0.7)
left.set_title("live weights before")
shown = middle.imshow(gradient.abs(), cmap="viridis")
figure.colorbar(shown, ax=middle, shrink=0.7)
middle.set_title("|gradient| of all weights")
right.imshow(fate, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=3.5, interpolation="nearest")
right.set_title("what became of them")
right.legend(
    [Patch(color=colour) for colour in COLOURS], LABELS,
    loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False,
)  # fmt: skip
for axes in (left, middle, right):
    axes.set(xticks=[], yticks=[], xlabel="inputs" if axes is not right else "")
left.set_ylabel("neurons")
plt.show()

# %%
# As many weights grew as dropped. Grown weights start at zero. Kept weights have not moved, because
# the update replaced a gradient step.

assert dropped.sum() == grown.sum()
assert torch.equal(before[kept], after[kept])
assert not after[grown].any()
print(f"{kept.sum()} kept, {dropped.sum()} dropped, {grown.sum()} grown")

# %%
# Two distributions show the same: dropped weights were small, and grown weights had a large
# gradient.

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
left.hist(
    [before[kept].abs(), before[dropped].abs()], bins=20, stacked=True, color=COLOURS[1:3],
    label=["kept", "dropped"],
)  # fmt: skip
left.set(xlabel="|weight| before", ylabel="live weights")
right.hist(
    [gradient[~mask & ~new_mask].abs(), gradient[grown].abs()], bins=20, stacked=True,
    color=["#808080a0", COLOURS[3]], label=["stayed out", "grown"],
)  # fmt: skip
right.set(xlabel="|gradient|", ylabel="weights that were not live")
left.legend()
right.legend()
plt.show()

# %%
# :doc:`/explanation/semantics` has the exact rules, with ties and rounding.
