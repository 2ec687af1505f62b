"""Masks of a finished run as the beginning of another: lottery tickets, and their controls.

What these functions return goes into ``mask=`` of a new optimizer. With weights rewound to their
initial values that is the lottery ticket (Frankle & Carbin 2019, "The Lottery Ticket Hypothesis");
with other initial weights it is a run with re-initialisation.
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
    """What is read of a :class:`~sparseopt.SparseOptimizer`, which this module may not know."""

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
        ValueError: if the density is not there yet, as in pruning before ``t_end``.

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
            f"{target} are to be in the end."
        )
    return {name: mask.clone() for name, mask in optimizer.masks.items()}


def shuffle_masks(masks: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Return masks with as many live weights in each layer, but at random places.

    What training with them loses against the masks themselves is what the places are worth, beyond
    the densities of the layers.

    Args:
        masks: bool masks by layer name; not changed.
        seed: of the places.

    Returns:
        Bool masks of the same shapes, by layer name.

    Raises:
        TypeError: if ``seed`` is not a whole number.
        ValueError: if it is out of range.

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
