"""Masks of a finished run as initial masks of another run: lottery tickets and their controls.

Pass the masks that these functions return as ``mask=`` to a new optimizer. With weights rewound to
their initial values, the new run trains a lottery ticket (Frankle & Carbin 2019, "The Lottery
Ticket Hypothesis"). With other initial weights it is the control with re-initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.utils.random import mask_generator
from sparseopt.utils.validation import check_seed

__all__ = ["final_masks", "shuffle_masks"]


class _Masked(Protocol):
    """The attributes of a ``SparseOptimizer``, which this module reads without importing it."""

    @property
    def layers(self) -> list[SparseLayer]: ...

    @property
    def masks(self) -> dict[str, Tensor]: ...

    @property
    def steps(self) -> int: ...


def final_masks(optimizer: _Masked) -> dict[str, Tensor]:
    """Return copies of the masks of a finished run, for ``mask=`` of another.

    Args:
        optimizer: a :class:`~sparseopt.SparseOptimizer` that has reached its final density.

    Returns:
        Bool masks of the weights' shapes by layer name.

    Raises:
        ValueError: if the final density is not reached yet, as in pruning before ``t_end``.

    Example:
        >>> import copy
        >>> import torch
        >>> from sparseopt import SparseOptimizer, final_masks
        >>> model = torch.nn.Linear(16, 8)
        >>> start = copy.deepcopy(model.state_dict())
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruned = SparseOptimizer(sgd, model, method="pruning", total_steps=100, delta_t=5)
        >>> for _ in range(100):
        ...     model(torch.randn(4, 16)).square().mean().backward()
        ...     pruned.step()
        >>> ticket = final_masks(pruned)
        >>> pruned.detach()
        >>> _ = model.load_state_dict(start)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> retrained = SparseOptimizer(sgd, model, method="static", mask=ticket)
        >>> torch.equal(retrained.masks["weight"], ticket["weight"])
        True
    """
    live = sum(layer.live for layer in optimizer.layers)
    target = sum(layer.target for layer in optimizer.layers)
    if live > target:
        raise ValueError(
            f"the run is not finished: {live} weights are live at step {optimizer.steps}, but "
            f"{target} shall be live in the end."
        )
    return {name: mask.clone() for name, mask in optimizer.masks.items()}


def shuffle_masks(masks: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Return masks with the same number of live weights in each layer, at random positions.

    If training with the shuffled masks is worse than with the given masks, the difference is what
    the positions are worth, beyond the densities of the layers.

    Args:
        masks: bool masks by layer name; not changed.
        seed: the seed of the random positions.

    Returns:
        Bool masks of the same shapes, by layer name.

    Raises:
        TypeError: if ``seed`` is not a whole number.
        ValueError: if ``seed`` is out of range.

    Example:
        >>> import torch
        >>> from sparseopt import shuffle_masks
        >>> masks = {"weight": torch.tensor([[True, False, False], [True, False, False]])}
        >>> int(shuffle_masks(masks, seed=0)["weight"].sum())
        2
    """
    generator = mask_generator(check_seed("seed", seed))
    return {name: _shuffled(mask, generator) for name, mask in masks.items()}


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    places = torch.randperm(mask.numel(), generator=generator, device="cpu").to(mask.device)
    return mask.reshape(-1)[places].view(mask.shape)
