"""``compact``: the model that the masks left, as an ordinary smaller model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparseopt.distributed.dtensor import is_sharded
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.compaction.constant_propagation import find_constants
from sparseopt.speedup.compaction.consumers import uses_of
from sparseopt.speedup.compaction.diagnosis import make_report
from sparseopt.speedup.compaction.removal import decide_removal
from sparseopt.speedup.compaction.surgery import Kept, cut, shrunk
from sparseopt.speedup.equivalence import check_agreement
from sparseopt.structured.channel_groups import Structure, analyse
from sparseopt.utils.probe import preserve_model_state
from sparseopt.utils.random import normal
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["Compaction", "compact", "recorded_inputs"]

#: Samples of the first training input that are looked at: enough for BatchNorm.
SAMPLES = 4


def compact(
    model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, **keywords: Any
) -> nn.Module:
    """Return a smaller model without the channels and neurons that the masks took out.

    See :class:`Compaction`, of which this is the model.

    Args:
        model: the model, with the weights that ``optimizer`` trains.
        optimizer: has the masks.
        inputs: positional inputs of the model; by default those of the first training step count.
        keywords: its keyword inputs.

    Returns:
        A copy of the same class, with smaller layers.

    Raises:
        TypeError: if a weight is sharded.
        ValueError: if no input is known, or the model lacks a weight of the optimizer.
        UntraceableModelError: if ``torch.export`` refuses the model.
        CompactionError: if the smaller model does not run or does not compute the same.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, compact
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> neurons = torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     init={"2": 1.0}, mask={"0": neurons[:, None].expand(4, 6)})
        >>> smaller = compact(model, optimizer, torch.randn(2, 6))
        >>> smaller[0]
        Linear(in_features=6, out_features=3, bias=True)
    """
    return Compaction(model, optimizer, *inputs, **keywords).model


class Compaction:
    """A smaller model without what the masks took out, and how it came about.

    A channel goes if nothing of its filter is live, or nothing that reads it, and if nothing that
    the model computes changes by that: in evaluation mode or in training mode, where
    BatchNorm makes its shift of a constant. What it leaves behind (its bias, or that shift) goes
    into the biases of the layers that read it where it can. The smaller model computes the same
    to rounding, which is checked by running both, and has the same gradients for what is left. It
    is a copy: the given model and optimizer are left as they are.

    Args:
        model: the model, with the weights that ``optimizer`` trains. Wrappers of data parallel
            training and of ``torch.compile`` are taken off.
        optimizer: has the masks.
        inputs: positional inputs of the model, the batch first; at least two samples where
            BatchNorm needs them. By default the shapes of the first training input are used.
        keywords: its keyword inputs.

    Attributes:
        model: the smaller model: of the same class, with smaller layers.
        masks: the optimizer's masks of weights, cut alike, by name: pass them as ``mask=`` to a new
            :class:`SparseOptimizer` of the smaller model, to train it further or to condense it.
        report: what was taken out, what could not be and why (:class:`CompactionReport`).
        kept: for each parameter and buffer that became smaller, by dimension the positions that
            stayed, ascending: ``{"conv1.weight": {0: tensor([0, 3, ...])}}``.

    Raises:
        TypeError: if a weight is sharded.
        ValueError: if no input is given and none was recorded, or the model lacks a weight of
            the optimizer.
        UntraceableModelError: if ``torch.export`` refuses the model.
        CompactionError: if the smaller model does not run or does not compute the same.

    Example:
        >>> import torch
        >>> from sparseopt import Compaction, SparseOptimizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> neurons = torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     init={"2": 1.0}, mask={"0": neurons[:, None].expand(4, 6)})
        >>> compaction = Compaction(model, optimizer, torch.randn(2, 6))
        >>> compaction.model[0]
        Linear(in_features=6, out_features=3, bias=True)
        >>> compaction.kept["0.weight"][0].tolist()
        [0, 2, 3]
    """

    def __init__(
        self, model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, **keywords: Any
    ) -> None:
        model = unwrapped(model)
        optimizer.materialize()
        live = _masks(model, optimizer)
        args, kwargs = (inputs, keywords) if inputs or keywords else recorded_inputs(optimizer)
        structure = analyse(model, args, kwargs)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        leaves = tree_leaves((args, kwargs))
        with preserve_model_state(model):
            constants = [
                find_constants(labelling, tensors, live, leaves)
                for labelling in structure.labellings
            ]
        uses = uses_of(structure, constants, live, model)
        removal = decide_removal(structure, uses)
        self.kept: Kept = _kept(structure, removal.removed)
        self.model = cut(model, self.kept, removal.folds)
        self.masks = {
            canonical_name(name): shrunk(mask, self.kept.get(name, {}))
            for name, mask in live.items()
            # What vectors have dropped follows from the channels, and is no mask of other methods.
            if mask.dim() > 1
        }
        self.report = make_report(structure, uses, removal, live, model)
        check_agreement(model, self.model, args, kwargs, structure.labellings[0].trace)


def _masks(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Tensor]:
    """Return the masks by the names that the model's parameters have."""
    parameters = {canonical_name(name): name for name, _ in model.named_parameters()}
    masks = {}
    for layer in optimizer.layers:
        if is_sharded(layer.weight):
            raise TypeError(
                f"layer {layer.name!r} is sharded: compact a model that is whole, for example one "
                "that loaded the full state dict."
            )
        name = parameters.get(layer.name)
        if name is None or model.get_parameter(name).shape != layer.weight.shape:
            raise ValueError(
                f"model={type(model).__name__}(...) has no parameter {layer.name!r} of shape "
                f"{tuple(layer.weight.shape)}, which the optimizer has a mask for."
            )
        masks[name] = layer.mask
    return masks


def recorded_inputs(optimizer: SparseOptimizer) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a small batch in the shapes of the first training input.

    Raises:
        ValueError: if there was none yet.
    """
    inputs = optimizer.example_inputs()
    if inputs is None:
        raise ValueError(
            "compact() knows no input yet: pass some, compact(model, optimizer, *inputs), or call "
            "it after the first training step of an optimizer that was given the model."
        )
    args, kwargs = tree_map(_few_random_samples, inputs)
    return args, kwargs


def _few_random_samples(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    few = value[:SAMPLES]
    if not few.is_floating_point():
        return few
    noise = normal(few.shape, torch.Generator().manual_seed(0))
    return noise.to(few.device, few.dtype)


def _kept(structure: Structure, removed: Any) -> dict[str, dict[int, Tensor]]:
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), roots in structure.by_axis.items():
        stays = ~removed[roots]
        if not stays.all():
            kept.setdefault(name, {})[dim] = torch.from_numpy(stays).nonzero()[:, 0]
    return kept
