"""Finds the channels that have one constant value for all inputs of the model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node

from sparseopt.speedup.compaction.propagation_rules import (
    Number,
    Value,
    any_along,
    closed,
    factors,
    fills_with_zeros,
    first_along,
    is_convolution,
    is_move,
    is_sum,
    is_uniform,
    laid_out_like,
    nonzero_after_training,
    normalises_by_input,
    open_of,
    opened,
    run,
    writes,
)
from sparseopt.structured.graph.calls import Labelling
from sparseopt.structured.graph.elementwise import is_placed_by_number
from sparseopt.structured.graph.tracing import arguments, is_number, only_checks

__all__ = ["Constants", "find_constants"]


@dataclass(frozen=True)
class Constants:
    """The constant channels at one contraction, a place where channels are summed.

    Attributes:
        known: bool, ``(channels,)``: whether the value is the same for every input, sample and
            place.
        values: the values, ``(channels,)``; meaningless where not known.
    """

    known: Tensor
    values: Tensor


def find_constants(
    labelling: Labelling,
    tensors: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    inputs: Iterable[Any],
) -> list[Constants]:
    """Run a graph on one input, and follow which entries of tensors another input could change.

    A channel whose values differ between places counts as not known, even if all are constant,
    because the differences depend on the size of the input.

    Args:
        labelling: the labelled graph.
        tensors: parameters and buffers by name.
        live: masks by parameter name; a weight without a mask is live everywhere.
        inputs: the inputs of the graph, flattened.

    Returns:
        The constants at each of ``labelling.contractions``.
    """
    found = _ConstantPropagation(labelling, tensors, live, iter(inputs)).constants()
    return [found[contraction.node] for contraction in labelling.contractions]


class _ConstantPropagation:
    """Abstract interpretation of one graph, from the inputs to the outputs.

    Each tensor has a value from a run on one input, and a bool tensor ``open``, which is true where
    another input could change the entry. Inputs are open and parameters are closed. The exception
    is a parameter with a single entry, such as a gate, which training may move away from zero.

    Invariant: an entry that is not open has its value for every input. Rules may open more entries
    than necessary, and never fewer. For tensors computed from parameters alone,
    ``_made_of_parameters`` says which entries training could make nonzero.
    """

    def __init__(
        self,
        labelling: Labelling,
        tensors: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        inputs: Iterator[Any],
    ) -> None:
        self._labelling = labelling
        self._tensors = tensors
        self._live = live
        self._inputs = inputs
        self._values: dict[Node, Any] = {}
        self._made_of_parameters: dict[Node, Any] = {}
        self._sized_by_model: set[Node] = set()
        self._contractions = {found.node: found for found in labelling.contractions}

    @torch.no_grad()
    def constants(self) -> dict[Node, Constants]:
        constants = {}
        for node in self._labelling.trace.module.graph.nodes:
            if node in self._contractions:
                constants[node] = self._constants_of(*self._contractions[node].operand)
            if self._is_sized_by_model(node):
                self._sized_by_model.add(node)
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._values[node] = self._result(node)
        return constants

    def _result(self, node: Node) -> Any:
        if only_checks(node):
            return None
        if is_number(node):
            return self._number(node)
        if node.target is not operator.getitem and not isinstance(node.target, OpOverload):
            return _nothing_known(node)
        if node in self._labelling.trace.measured or is_placed_by_number(node):
            return self._placed_by_input(node)
        return self._call(node)

    def _placed_by_input(self, node: Node) -> Any:
        """Return open values without running the call, which may write, or share memory.

        It can't run, because values that decide about sizes and places are not known here: sums run
        without their open entries.
        """
        if is_move(node) or writes(node):
            self._values[node.all_input_nodes[0]].open.fill_(True)
        return _nothing_known(node)

    def _number(self, node: Node) -> Number:
        """Compute a number from tensors or from other numbers; training may change it too."""
        made_of = [self._values[one] for one in node.all_input_nodes]
        is_open = any(
            one in self._made_of_parameters or bool(value.open.any())
            for one, value in zip(node.all_input_nodes, made_of, strict=True)
        )
        return Number.of(run(node, self._values, _tensor), is_open=is_open)

    def _constants_of(self, node: Node, dim: int) -> Constants:
        """Return the constants of the channels along ``dim`` of ``node``.

        A channel is known if none of its entries is open, if all its entries are equal, and if
        training cannot change it.
        """
        value = self._values[node]
        known = ~any_along(value.open, dim) & is_uniform(value.tensor, dim)
        if node in self._made_of_parameters:
            known &= ~any_along(self._made_of_parameters[node], dim)
        return Constants(known, first_along(value.tensor, dim))

    def _placeholder(self, node: Node) -> Any:
        """Return the value of a parameter, a buffer, a constant of the code, or an input.

        Masked entries of a parameter stay zero. Its other entries have a gradient, so training can
        make them nonzero even if they are zero now. A parameter with one entry is open where it is
        live.
        """
        trace = self._labelling.trace
        if node in trace.tensors:
            name = trace.tensors[node]
            tensor = self._tensors[name]
            # A copy, because the graph may write to it, as to BatchNorm's count of batches.
            value = closed(tensor.detach().clone())
            if isinstance(tensor, nn.Parameter):
                counts = self._live.get(name, torch.ones_like(value.open))
                if tensor.numel() == 1:
                    # It is never removed, and its gradient depends on everything it multiplies.
                    return Value(value.tensor, counts.clone())
                self._made_of_parameters[node] = counts
            return value
        if node in trace.constants:
            return closed(trace.constants[node])
        given = next(self._inputs)
        return opened(given) if isinstance(given, Tensor) else given

    def _call(self, node: Node) -> Any:
        """Run one operator, and decide which entries of its result are open.

        First the rules compute ``open`` from the arguments, because the operator may write into
        them. Then the operator runs. Sums run with zeros in open entries, so that the known part of
        a sum is exact. Finally, all entries become open in channels that have an open entry or
        entries that differ.
        """
        if node.target is operator.getitem:
            source, index = node.args
            for known in (self._values, self._made_of_parameters):
                if source in known:
                    known[node] = known[source][index]  # type: ignore[index]
            return self._values[node]
        if normalises_by_input(node):
            return self._normalised_by_input(node)
        # Before the call, which may write into its arguments.
        is_open = open_of(node, self._values, self._may_count, any_size=self._any_size(node))
        result = run(node, self._values, _settled if is_sum(node) else _tensor)
        made = nonzero_after_training(node, self._values, self._made_of_parameters, result)
        if made is not None:
            self._made_of_parameters[node] = made
        if isinstance(result, (list, tuple)):
            parts = zip(result, is_open, strict=True)
            if is_move(node):
                return [Value(part, own) for part, own in parts]
            return [Value(part, laid_out_like(part, own)) for part, own in parts]
        if not isinstance(result, Tensor):
            return result
        if writes(node):
            # Written in place, so that views of the argument see it too.
            is_open = self._values[node.args[0]].open.copy_(is_open)  # type: ignore[index]
        elif not is_move(node):
            is_open = laid_out_like(result, is_open)
        return self._uniform_or_open(node, Value(result, is_open))

    def _normalised_by_input(self, node: Node) -> Value:
        """Return the result of a normalisation by the input, without an update of the statistics.

        A channel that is constant is normalised to zero, so its result is the shift. All other
        channels are open.
        """
        given = arguments(node)
        value = self._values[given["input"]]
        result = torch.zeros_like(value.tensor)
        if self._labelling.of(given["input"])[1] is None:
            return opened(result)
        along = [1, -1, *(1,) * (result.dim() - 2)]
        if given["bias"] is not None:
            result += self._values[given["bias"]].tensor.view(along)
        is_open = any_along(value.open, 1).view(along).expand_as(result)
        if given["bias"] is not None:
            is_open = is_open | self._values[given["bias"]].open.view(along)
        return Value(result, laid_out_like(result, is_open))

    def _is_sized_by_model(self, node: Node) -> bool:
        """Whether a value is computed only from tensors of the model or written in its code."""
        trace = self._labelling.trace
        if node.op == "placeholder":
            return node in trace.tensors or node in trace.constants
        made_of = node.all_input_nodes
        return bool(made_of) and self._sized_by_model.issuperset(made_of)

    def _any_size(self, node: Node) -> bool:
        """Whether a call may compute a result from more or fewer values at another size of input.

        Sums over channels always have the same number of terms. A convolution sums as many terms as
        its kernel has, but fewer at the border if it is padded.
        """
        if not node.all_input_nodes or node in self._sized_by_model:
            return False
        if is_convolution(node):
            return fills_with_zeros(node) or factors(node)[1] not in self._sized_by_model
        return not (is_sum(node) and node in self._contractions)

    def _may_count(self, node: Node) -> Tensor:
        """Return where a factor may be nonzero, now or after further training."""
        value: Value = self._values[node]
        made: Tensor | None = self._made_of_parameters.get(node)
        return value.open | (value.tensor != 0) if made is None else made

    def _uniform_or_open(self, node: Node, value: Value) -> Value:
        """Open all entries of channels that have an open entry, or entries that differ.

        If the channels don't lie along exactly one dimension, one open entry opens the tensor.
        """
        labelled = [dim for dim, atoms in enumerate(self._labelling.of(node)) if atoms is not None]
        if len(labelled) != 1:
            is_open = value.open.any().expand_as(value.open)
        else:
            (dim,) = labelled
            channels = any_along(value.open, dim) | ~is_uniform(value.tensor, dim)
            along = [-1 if other == dim else 1 for other in range(value.open.dim())]
            is_open = channels.view(along).expand_as(value.open)
        if torch.equal(is_open, value.open):
            return value
        if 0 in value.open.stride():
            return Value(value.tensor, laid_out_like(value.tensor, is_open))
        value.open.copy_(is_open)
        return value


def _nothing_known(node: Node) -> Any:
    """Return open values for the results of a region of the graph, without running it."""
    results = node.meta["val"]
    several = isinstance(results, (list, tuple))
    unknown = [opened(_zeros(result)) for result in (results if several else [results])]
    return unknown if several else unknown[0]


def _zeros(like: Tensor) -> Tensor:
    """Return zeros with the shape and the layout of a tensor that has no values."""
    return torch.empty_strided(
        like.shape, like.stride(), dtype=like.dtype, device=like.device
    ).zero_()


def _tensor(value: Value) -> Tensor:
    return value.tensor


def _settled(value: Value) -> Tensor:
    """Return a tensor with zeros where it is open, so that the known part of a sum is exact."""
    return value.tensor.masked_fill(value.open, 0)
