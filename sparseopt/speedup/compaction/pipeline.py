"""``compact``: the model that the masks left, as an ordinary smaller model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseopt.distributed.dtensor import is_sharded
from sparseopt.masks.initial import masks_by_layer
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.compaction.constant_propagation import find_constants
from sparseopt.speedup.compaction.consumers import Use, uses_of
from sparseopt.speedup.compaction.diagnosis import make_report
from sparseopt.speedup.compaction.recorded import recorded_inputs
from sparseopt.speedup.compaction.removal import Removal, decide_removal
from sparseopt.speedup.compaction.report import CompactionReport
from sparseopt.speedup.compaction.result import Compacted
from sparseopt.speedup.compaction.surgery import Kept, cut, shrunk
from sparseopt.speedup.compaction.written_numbers import (
    attributes_to_change,
    is_divided,
    new_numbers,
    only,
    set_numbers,
    sizes_of_norms,
)
from sparseopt.speedup.equivalence import Agreement
from sparseopt.speedup.inference.masks import Masks
from sparseopt.structured.channel_groups import ChannelGroup, Structure, analyse
from sparseopt.utils.deprecation import renamed_arguments, warn_old_spelling
from sparseopt.utils.errors import CompactionError, UntraceableModelError
from sparseopt.utils.example_inputs import as_arguments, with_old_inputs
from sparseopt.utils.probe import preserve_model
from sparseopt.utils.validation import check_changes_mode, check_model
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["Compaction", "compact"]

#: The name of a class of modules, and the kind of groups that its code splits.
_Divider = tuple[str, str]


@renamed_arguments(optimizer="masks")
def compact(
    model: nn.Module, masks: Masks, *inputs: Any, example_inputs: Any = None, **keywords: Any
) -> Any:
    """Return a smaller model without the channels and neurons that the masks dropped.

    A channel is removed if its filter has no live weight or no live weight reads it, and if the
    model computes the same without it, in evaluation mode and in training mode. A channel whose
    filter has no live weight leaves a constant: its bias, or the shift of the normalisation after
    it. This constant is added to the biases of the layers that read the channel, where this is
    possible. The smaller model computes the same up to rounding, which is checked by running both,
    and has the same gradients for the remaining weights. It is a copy: the given model and
    optimizer stay as they are. All this holds for calls that take the same way through the model's
    code as the example inputs do: with the same arguments given, and with equal values of those
    that are not tensors.

    Args:
        model: the model that has the masked weights. Wrappers of data parallel training and of
            ``torch.compile`` are removed.
        masks: which weights are live: the optimizer that trains the model; bool tensors by the name
            of the weight or of its module (a weight without one is full); or ``"nonzero"``, for
            a model that was pruned by other means.
        inputs: the spelling of 0.1.0 for positional example inputs, deprecated.
        example_inputs: inputs of the model, the batch first: a tensor, a tuple of positional
            inputs, a mapping of keyword inputs, or a pair of both. BatchNorm needs at least two
            samples. By default the inputs of the first training step, with random numbers for
            floating-point numbers.
        keywords: the spelling of 0.1.0 for keyword example inputs, deprecated.

    Returns:
        :class:`Compacted`, with ``model``, ``masks``, ``report`` and ``kept``. (The deprecated
        spelling returns the model.)

    Raises:
        TypeError: if ``model`` is not a module, a weight is sharded, ``masks`` is none of these, or
            inputs are given twice.
        ValueError: if a tensor of the model is on the meta device; if no input is given and none
            was recorded, or the model does not run on random numbers in the recorded shapes; if the
            model lacks a weight that has a mask, or a mask drops a weight that is not zero.
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
        >>> compacted = compact(model, optimizer, example_inputs=torch.randn(2, 6))
        >>> compacted.model[0]
        Linear(in_features=6, out_features=3, bias=True)
    """
    is_old_spelling = bool(inputs or keywords)
    example_inputs = with_old_inputs(
        example_inputs,
        inputs,
        keywords,
        old="compact(model, optimizer, *inputs, **keywords)",
        new="compact(model, optimizer, example_inputs=(inputs, keywords)).model",
        stacklevel=3,  # The decorator's frame is between this one and the caller's.
    )
    compacted = _compact(model, masks, example_inputs)
    return compacted.model if is_old_spelling else compacted


class Compaction:
    """The spelling of 0.1.0, deprecated: use :func:`compact`, which returns the same.

    Args:
        model: the model.
        masks: which weights are live.
        inputs: positional inputs.
        example_inputs: inputs in one argument.
        keywords: keyword inputs.

    Attributes:
        model: the smaller model.
        masks: the masks of the smaller model's weights.
        report: what was removed, what could not be removed, and why.
        kept: the positions that stayed.

    Example:
        >>> import warnings
        >>> import torch
        >>> from sparseopt import Compaction
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     compaction = Compaction(model, "nonzero", torch.randn(2, 6))
        >>> compaction.model[0]
        Linear(in_features=6, out_features=4, bias=True)
    """

    @renamed_arguments(optimizer="masks")
    def __init__(
        self,
        model: nn.Module,
        masks: Masks,
        *inputs: Any,
        example_inputs: Any = None,
        **keywords: Any,
    ) -> None:
        warn_old_spelling(
            "Compaction(model, optimizer, *inputs, **keywords)",
            "compact(model, optimizer, example_inputs=(inputs, keywords))",
            stacklevel=3,  # The decorator's frame is between this one and the caller's.
        )
        given = (inputs, keywords) if inputs or keywords else example_inputs
        compacted = _compact(model, masks, given)
        self.model: nn.Module = compacted.model
        self.masks: dict[str, Tensor] = compacted.masks
        self.report: CompactionReport = compacted.report
        self.kept: Kept = compacted.kept


@torch.inference_mode(False)  # Tensors that are made in inference mode can't be trained.
def _compact(model: nn.Module, masks: Masks, example_inputs: Any) -> Compacted:
    check_model("model", model)
    model = unwrapped(model)
    check_changes_mode("model", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise UntraceableModelError(
            f"model={type(model).__name__}(...) is TorchScript, which torch.export refuses: pass "
            "the model that it was made of."
        )
    if any(one.is_inference() for one in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model)  # torch.export refuses tensors that inference mode made
    live = _masks(model, masks)
    _check_dropped_are_zero(model, live)
    if example_inputs is None:
        args, kwargs = recorded_inputs(model, masks)
    else:
        args, kwargs = tree_map_only(Tensor, _ordinary, as_arguments(example_inputs))
    leaves = tree_leaves((args, kwargs))
    _check_not_empty(leaves)
    structure = analyse(model, args, kwargs)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with preserve_model(model):
        constants = [
            find_constants(labelling, tensors, live, leaves) for labelling in structure.labellings
        ]
    uses = uses_of(structure, constants, live, model)
    agreement = Agreement(model, args, kwargs, structure.labellings[0].trace)
    cut_model = _Cut.that_agrees(model, structure, uses, agreement)
    cut_masks = {
        canonical_name(name): shrunk(mask, cut_model.kept.get(name, {}))
        for name, mask in live.items()
        # Only rigl-struct has masks of vectors. Their dropped entries follow from the channels.
        if mask.dim() > 1
    }
    report = make_report(cut_model.structure, uses, cut_model.removal, live, model)
    return Compacted(cut_model.model, cut_masks, report, cut_model.kept)


def _check_not_empty(inputs: Sequence[Any]) -> None:
    """Raise if no tensor has an element: constants are found by comparing outputs."""
    given = [one for one in inputs if isinstance(one, Tensor)]
    if given and not any(one.numel() for one in given):
        raise ValueError(
            f"example_inputs has tensors without elements only, {tuple(given[0].shape)} for "
            "example: give one sample or more."
        )


def _ordinary(value: Tensor) -> Tensor:
    """Return a tensor that autograd takes; those that are made in inference mode are copied."""
    return value.clone() if value.is_inference() else value


@dataclass(frozen=True)
class _Cut:
    """A smaller model that computes the same."""

    structure: Structure
    removal: Removal
    kept: Kept
    model: nn.Module

    @classmethod
    def that_agrees(
        cls, model: nn.Module, structure: Structure, uses: Sequence[Use], agreement: Agreement
    ) -> _Cut:
        """Cut all channels that can be removed, and return the first model that agrees.

        The code of a module that splits channels, into heads for example, may not run with fewer.
        If the model with all removals fails, these kinds of groups are tried one by one, and only
        the kinds that succeed alone are removed.

        Raises:
            CompactionError: if no smaller model runs and computes the same.
        """

        def attempt(failures: Mapping[_Divider, str]) -> _Cut:
            return cls._attempt(model, _blocked(structure, model, failures), uses, agreement)

        dividers = {
            divider for group in structure.groups if (divider := _divider(group, model)) is not None
        }
        try:
            return attempt({})
        except CompactionError as error:
            if not dividers:
                raise
            together = str(error)
        if len(dividers) == 1:
            return attempt(dict.fromkeys(dividers, together))
        failures = {}
        for divider in dividers:
            try:
                attempt(dict.fromkeys(dividers - {divider}, together))
            except CompactionError as error:
                failures[divider] = str(error)
        return attempt(failures)

    @classmethod
    def _attempt(
        cls, model: nn.Module, structure: Structure, uses: Sequence[Use], agreement: Agreement
    ) -> _Cut:
        """Cut a copy, and change the numbers in its attributes that have to change."""
        removal = decide_removal(structure, uses)
        kept = _kept(structure, removal.removed)
        smaller = cut(model, kept, removal.folds)
        set_numbers(smaller, sizes_of_norms(structure, removal.removed))
        numbers = new_numbers(model, structure.groups, kept)
        chosen = attributes_to_change(smaller, numbers, lambda: agreement.check(smaller))
        set_numbers(smaller, only(smaller, numbers, chosen))
        return cls(structure, removal, kept, smaller)


def _divider(group: ChannelGroup, model: nn.Module) -> _Divider | None:
    """Return the class whose code splits a group's channels, if there is one."""
    if group.blocked is not None or not is_divided(group):
        return None
    path = group.name.rpartition(".")[0].rpartition(".")[0]
    return type(model.get_submodule(path)).__name__, group.kind


def _blocked(structure: Structure, model: nn.Module, failures: Mapping[_Divider, str]) -> Structure:
    """Return the structure, with channels blocked if the code that splits them fails."""
    groups, reasons = [], dict(structure.reasons)
    for group, roots in zip(structure.groups, structure.roots, strict=True):
        divider = _divider(group, model)
        if divider is None or divider not in failures:
            groups.append(group)
            continue
        name, kind = divider
        reason = f"the code of {name} does not work with fewer {kind}s: {failures[divider]}"
        groups.append(replace(group, blocked=reason))
        reasons.update(dict.fromkeys(roots, reason))
    return replace(structure, groups=groups, reasons=reasons)


def _masks(model: nn.Module, given: Masks) -> dict[str, Tensor]:
    """Return the masks by the names that the model's parameters have."""
    parameters = {canonical_name(name): name for name, _ in model.named_parameters()}
    if isinstance(given, SparseOptimizer):
        given.materialize()
        return _masks_of(given, model, parameters)
    if isinstance(given, Mapping):
        found = masks_by_layer("masks", given, parameters)
        named = {parameters[name]: mask for name, mask in found.items()}
        for name, mask in named.items():
            shape = model.get_parameter(name).shape
            if not isinstance(mask, Tensor):
                raise TypeError(
                    f"masks[{name!r}] is a {type(mask).__name__}, but must be a bool tensor."
                )
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ValueError(
                    f"masks[{name!r}] is {mask.dtype} of shape {tuple(mask.shape)}, but must be "
                    f"bool of shape {tuple(shape)}."
                )
        return named
    if given != "nonzero":
        raise TypeError(
            f"masks={given!r} must be a SparseOptimizer, a mapping from name to bool tensor, or "
            "'nonzero'."
        )
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    return {name: weight.detach() != 0 for name, weight in weights.items()}


def _check_dropped_are_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check that the model computes with live weights only: the smaller model does."""
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        dropped = int(weight.masked_fill(mask.to(weight.device), 0).count_nonzero())
        if dropped and mask.dim() > 1:
            raise ValueError(
                f"masks[{name!r}] drops {dropped} weights that are not zero, so the smaller model "
                "would compute something else. Set them to zero first, for example with "
                "optimizer.apply_masks(model)."
            )


def _masks_of(
    optimizer: SparseOptimizer, model: nn.Module, parameters: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the optimizer's masks by the model's own names.

    Args:
        optimizer: the optimizer.
        model: the model.
        parameters: the model's own names of its parameters, by canonical name.
    """
    masks = {}
    for layer in optimizer.layers:
        if is_sharded(layer.weight):
            raise TypeError(
                f"layer {layer.name!r} is sharded: compact a model without sharded weights, for "
                "example one that loaded the full state dict."
            )
        name = parameters.get(layer.name)
        if name is None or model.get_parameter(name).shape != layer.weight.shape:
            raise ValueError(
                f"model={type(model).__name__}(...) has no parameter {layer.name!r} of shape "
                f"{tuple(layer.weight.shape)}, for which the optimizer has a mask."
            )
        masks[name] = layer.mask
    return masks


def _kept(structure: Structure, removed: Any) -> dict[str, dict[int, Tensor]]:
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), roots in structure.by_axis.items():
        stays = ~removed[roots]
        if not stays.all():
            kept.setdefault(name, {})[dim] = torch.from_numpy(stays).nonzero()[:, 0]
    return kept
