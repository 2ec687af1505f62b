"""
Your own method in 30 lines
===========================

On this page you write two new methods and register them by name. The first is a variant of RigL
that grows weights *at random, in proportion to a power of their gradient*, instead of always the
weights with the largest gradients. It is checked against RigL, and compared with other methods
over several seeds. The second *keeps state* from every step, and a run of it is stopped and
resumed to the last bit. Neither method needs code for checkpoints or for many processes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import Compose, DropGrow, SparseLayer, SparseOptimizer, Update, register_method

# %%
# The idea
# --------
#
# RigL grows the weights with the largest :math:`|g|`, and SET grows random weights. A method
# between the two draws candidates without replacement, with probabilities proportional to
# :math:`|g|^{1/T}`. At temperature :math:`T = 0` this is RigL, at :math:`T \to \infty` it is SET.
# The draw needs no loop: add Gumbel noise to the logarithms and take the largest (`Kool et al. 2019
# <https://arxiv.org/abs/1903.06059>`_). So the method is only a *score*:
#
# .. math:: s = \log |g| - T \log(-\log u), \quad u \sim U(0, 1)
#
# The method
# ----------
#
# ``DropGrow`` does the rest. In each layer it drops the share that the schedule returns, the
# smallest weights first, and grows as many weights by the score.


@register_method
@dataclass(frozen=True)
class SampledRigL(DropGrow):
    """Grows weights at random, in proportion to a power of their gradients.

    Args:
        temperature: 0 grows the largest gradients, as RigL; the higher, the more like SET.
    """

    name: ClassVar[str] = "sampled-rigl"
    needs_dense_gradient: ClassVar[bool] = True

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature!r} must not be negative.")

    def grow_scores(self, layer: SparseLayer, update: Update) -> torch.Tensor:
        # The noise of 0 is infinite, and infinity times a temperature of 0 is NaN.
        uniform = update.random_scores(layer).clamp(min=1e-9)
        gumbel = -(-uniform.log()).log()
        return layer.weight.grad.abs().log() + self.temperature * gumbel

    def train_flops(self, cost) -> float:
        return cost.with_dense_gradients(steps=1)


# %%
# Three things to notice:
#
# - Random numbers come from ``update``, not from ``torch.rand``. So they are the same on all ranks
#   and devices, and a resumed run draws the same numbers.
# - The method does not handle live weights, ties, exact counts or optimizer state. Scores of
#   weights that survive the drop are ignored.
# - ``train_flops`` is the formula of one dense gradient every ``delta_t`` steps. Without it, the
#   formula of ``flops()`` counts all steps as sparse.
#
# Does it do what it says?
# ------------------------
#
# Check a new method against a known one. At temperature 0 every mask has to equal RigL's.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:-360], images[-360:]
train_labels, test_labels = labels[:-360], labels[-360:]
EPOCHS, BATCH = 8, 48
STEPS = EPOCHS * -(-len(train_images) // BATCH)


def begin(method, seed: int = 0) -> tuple[nn.Module, SparseOptimizer]:
    """A network, and the optimizer around it."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model,
        method=method, density=0.05, total_steps=STEPS, delta_t=10, seed=seed,
    )  # fmt: skip
    return model, optimizer


def train(model: nn.Module, optimizer: SparseOptimizer, epochs: range) -> None:
    """Train for some of the epochs. Each epoch has its own order of the images."""
    for epoch in epochs:
        order = torch.randperm(len(train_images), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()


def run(method, seed: int = 0) -> tuple[SparseOptimizer, float]:
    """Train; return the optimizer, and the accuracy on the test images in percent."""
    model, optimizer = begin(method, seed)
    train(model, optimizer, range(EPOCHS))
    with torch.no_grad():
        right = model(test_images).argmax(1) == test_labels
    return optimizer, 100 * right.float().mean().item()


cold, _ = run(SampledRigL(temperature=0.0))
rigl, _ = run("rigl")
assert all(torch.equal(mask, rigl.masks[name]) for name, mask in cold.masks.items())
print(f"temperature 0: the masks of RigL after {len(cold.history)} updates")

# %%
# At temperature 1 it should explore more than RigL and less than SET. ``explored`` is the share of
# all weights that were ever live:

for method in ("static", "rigl", SampledRigL(temperature=1.0), "set"):
    optimizer, _ = run(method)
    explored = optimizer.history[-1].explored if optimizer.history else optimizer.density
    print(f"{optimizer.method.name:14} {explored:.3f}")

# %%
# Is it accurate?
# ---------------
#
# One seed says nothing. Four seeds on this small task at a density of 0.05 say a little. The table
# has their mean, and the lowest and the highest value.

for method in ("static", "rigl", "sampled-rigl", "set"):
    found = [run(method, seed)[1] for seed in range(4)]
    print(f"{method:14} {sum(found) / len(found):5.1f} % ({min(found):.1f} to {max(found):.1f})")

# %%
# A method with state
# -------------------
#
# The salience :math:`|w\,g|` of a weight says how much the loss depends on it. The salience of one
# batch is noisy, so the next method averages it over *every* step, and drops the weights with the
# smallest average:
#
# .. math:: m \leftarrow \beta\, m + (1 - \beta)\, |w\, g|
#
# A method never changes, so one instance can serve many optimizers. It declares the names and the
# initial values of its state, and the optimizer keeps the state.


@register_method
@dataclass(frozen=True)
class SmoothedSalience(DropGrow):
    """Drops the smallest \\|w g\\|, smoothed over every step; grows the largest \\|g\\|.

    Args:
        decay: how much of the average stays at each step, in [0, 1).
    """

    name: ClassVar[str] = "smoothed-salience"
    needs_dense_gradient: ClassVar[bool] = True
    follows_mask: ClassVar[tuple[str, ...]] = ("salience",)

    decay: float = 0.9

    def initial_layer_state(self, layer: SparseLayer) -> dict[str, torch.Tensor]:
        return {"salience": torch.zeros_like(layer.weight)}

    def observe(self, layer: SparseLayer, gradient: torch.Tensor, update: Update) -> None:
        salience = (layer.weight * gradient).abs()
        update.layer_state(layer)["salience"].lerp_(salience, 1 - self.decay)

    def drop_scores(self, layer: SparseLayer, update: Update) -> torch.Tensor:
        return layer.gather(update.layer_state(layer)["salience"])

    def grow_scores(self, layer: SparseLayer, update: Update) -> torch.Tensor:
        return layer.weight.grad.abs()

    def train_flops(self, cost) -> float:
        return cost.with_dense_gradients(steps=1)


# %%
# - ``observe`` is called once a step and layer, with the gradient that the step will use: summed
#   over micro-batches, averaged over ranks, unscaled. It is 0 where a weight is not live, and so
#   costs nothing extra.
# - ``follows_mask`` names tensors whose entries are reset when their weight drops or grows, like
#   the weight's momentum. If the name is left out, only ``observe`` changes the tensor.
# - One number for the full run, instead of a tensor for each layer, goes into
#   ``initial_run_state()`` and ``update.run_state``.
#
# With a decay of 0 only the last step counts. :doc:`Compose </methods/compose>` can build the same
# method from named scores:

forgetful, _ = run(SmoothedSalience(decay=0.0))
composed, _ = run(Compose(drop="salience", grow="gradient"))
assert all(torch.equal(mask, composed.masks[name]) for name, mask in forgetful.masks.items())
smooth, _ = run(SmoothedSalience(decay=0.9))
assert not all(torch.equal(mask, composed.masks[name]) for name, mask in smooth.masks.items())
print(f"decay 0: the masks of the composed method after {len(forgetful.history)} updates")

# %%
# Stop and resume
# ---------------
#
# The state is part of ``optimizer.state_dict()``. Here is an uninterrupted run,

model, optimizer = begin("smoothed-salience")
train(model, optimizer, range(EPOCHS))

# %%
# the first half of another one,

half, half_optimizer = begin("smoothed-salience")
train(half, half_optimizer, range(EPOCHS // 2))
checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save({"model": half.state_dict(), "optimizer": half_optimizer.state_dict()}, checkpoint)

# %%
# and its second half, from the file, with new objects. They start with other weights and other
# masks:

resumed, resumed_optimizer = begin("smoothed-salience", seed=1)
saved = torch.load(checkpoint)
resumed.load_state_dict(saved["model"])
resumed_optimizer.load_state_dict(saved["optimizer"])
train(resumed, resumed_optimizer, range(EPOCHS // 2, EPOCHS))

for mine, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
    assert torch.equal(mine, theirs)
assert optimizer.history == resumed_optimizer.history
print("the same bits")
print({key: tuple(tensor.shape) for key, tensor in saved["optimizer"]["state"][0].items()})

# %%
# For longer comparisons use :doc:`the benchmark </how-to/benchmarks>`. :doc:`/methods/your-own`
# says what else a method can decide, and what it can rely on.
