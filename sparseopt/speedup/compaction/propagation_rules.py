"""Rules that say which entries of a result could change with another input, or by training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from sparseopt.structured.graph.elementwise import is_pointwise
from sparseopt.structured.graph.tracing import arguments, operator_name

__all__ = [
    "Number",
    "Value",
    "any_along",
    "closed",
    "factors",
    "fills_with_zeros",
    "first_along",
    "is_convolution",
    "is_move",
    "is_norm",
    "is_sum",
    "is_uniform",
    "laid_out_like",
    "nonzero_after_training",
    "normalises_by_input",
    "open_of",
    "opened",
    "run",
    "writes",
]


@dataclass(frozen=True)
class Value:
    """One tensor of a graph.

    Attributes:
        tensor: its value for the present input.
        open: bool, of its shape: true where another input could change the value.
    """

    tensor: Tensor
    open: Tensor


@dataclass(frozen=True)
class Number(Value):
    """One Python number that is computed from tensors, such as by ``.item()``.

    ``tensor`` and ``open`` have no dimensions.
    """

    @classmethod
    def of(cls, number: complex, *, is_open: bool) -> Number:
        """Return the value of ``number``; ``is_open`` says whether the input may change it."""
        dtype = torch.float64 if isinstance(number, float) else None
        return cls(torch.tensor(number, dtype=dtype), torch.tensor(is_open))

    @property
    def number(self) -> Any:
        """The number itself."""
        return self.tensor.item()


def closed(tensor: Tensor) -> Value:
    """Return the value of a tensor that no input changes."""
    return Value(tensor, torch.zeros_like(tensor, dtype=torch.bool))


def opened(tensor: Tensor) -> Value:
    """Return the value of a tensor that the input may change everywhere."""
    return Value(tensor, torch.ones_like(tensor, dtype=torch.bool))


def laid_out_like(tensor: Tensor, is_open: Tensor) -> Tensor:
    """Return a copy with the layout of ``tensor``, so that one view is possible of both."""
    return torch.empty_like(tensor, dtype=torch.bool).copy_(is_open)


def any_along(flags: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` whether any flag is true there."""
    return _rows(flags, dim).any(1)


def first_along(tensor: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` the first value there."""
    return _rows(tensor, dim)[:, 0]


def is_uniform(tensor: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` whether all values there are equal, up to rounding."""
    rows = _rows(tensor, dim)
    if not rows.is_floating_point():
        return (rows == rows[:, :1]).all(1)
    return torch.isclose(rows, rows[:, :1], rtol=1e-5, atol=1e-7).all(1)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


#: Operators that move values and do not change them.
_MOVES: Final = frozenset(
    {
        *("T", "mT", "numpy_T", "t", "transpose", "permute", "movedim", "swapaxes", "flip"),
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "tensor_split", "chunk"),
        *("unbind", "cat", "concat", "concatenate", "expand", "expand_as", "repeat", "clone"),
    }
)
#: The same, if the number of repeats is written in the code.
_REPEATS: Final = (torch.ops.aten.repeat_interleave.self_int,)
#: Operators that read the shape or the type of their argument, and not its values.
_FILLS: Final = frozenset(
    {"full_like", "ones_like", "zeros_like", "new_full", "new_ones", "new_zeros"}
)
#: Prefixes of the names of operators that mix values with factors that are not negative.
_MIXES: Final = (
    *("avg_pool", "adaptive_avg_pool", "max_pool", "adaptive_max_pool"),
    *("upsample", "_upsample", "pad", "constant_pad", "reflection_pad", "replication_pad"),
    *("mean", "sum", "amax"),
)
_CONVOLUTIONS: Final = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED: Final = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_SUMS: Final = frozenset(
    {
        *("linear", "matmul", "mm", "bmm", "addmm", *_CONVOLUTIONS, *_TRANSPOSED),
    }
)
_NORMS: Final = frozenset({"batch_norm", "instance_norm"})
_DROPOUTS: Final = frozenset(
    {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
)

Values = Mapping[Node, Any]


def is_move(node: Node) -> bool:
    """Whether a call moves values and does not change them."""
    return operator_name(node) in _MOVES or node.target in _REPEATS


def writes(node: Node) -> bool:
    """Whether a call writes into its first argument, by the underscore at the end of its name."""
    name = operator_name(node)
    return name.endswith("_") and not name.endswith("__")


def is_sum(node: Node) -> bool:
    """Whether a call sums products of two matrices or maps; see :func:`factors`."""
    return operator_name(node) in _SUMS


def is_convolution(node: Node) -> bool:
    """Whether a call is a convolution, plain or transposed."""
    return operator_name(node) in (*_CONVOLUTIONS, *_TRANSPOSED)


def fills_with_zeros(node: Node) -> bool:
    """Whether a convolution puts zeros around or between the values that it sums."""
    if operator_name(node) in _TRANSPOSED:
        return True
    padding = arguments(node)["padding"]
    return padding != "valid" and (padding == "same" or any(padding))


def is_norm(node: Node) -> bool:
    """Whether a call normalises each channel by itself."""
    return operator_name(node) in _NORMS


def normalises_by_input(node: Node) -> bool:
    """Whether a call normalises each channel by statistics of the input, not by running ones."""
    name = operator_name(node)
    if name == "instance_norm":
        return bool(arguments(node)["use_input_stats"])
    return name == "batch_norm" and bool(arguments(node)["training"])


def factors(node: Node) -> tuple[Node, Node, Node | None]:
    """Return the two factors of a call that sums products, and the term that it adds, if any."""
    given = arguments(node)
    if operator_name(node) == "addmm":
        return given["mat1"], given["mat2"], given["self"]
    assert isinstance(node.target, torch._ops.OpOverload)
    left, right = (given[argument.name] for argument in node.target._schema.arguments[:2])
    return left, right, given.get("bias")


def run(node: Node, values: Values, part: Callable[[Value], Any]) -> Any:
    """Make a call with ``part`` of each tensor's value, such as its tensor or its ``open``."""

    def argument(found: Node) -> Any:
        value = values[found]
        if isinstance(value, Number):
            return value.number
        return part(value) if isinstance(value, Value) else value

    assert callable(node.target)
    return node.target(*map_arg(node.args, argument), **map_arg(node.kwargs, argument))


def open_of(
    node: Node, values: Values, may_count: Callable[[Node], Tensor], *, any_size: bool
) -> Any:
    """Return which entries of a call's result are open: one tensor, or a list for several results.

    Args:
        node: the call.
        values: the values of its arguments, before the call.
        may_count: returns where a factor of a product may be nonzero.
        any_size: whether the number of values that one result is computed from may be another for
            an input of another size. A sum of zeros is zero at any size; all other sums, and the
            results of unknown operators, are open then.
    """
    name = operator_name(node).removesuffix("_")
    if is_move(node):
        return run(node, values, lambda value: value.open)
    if is_sum(node):
        return _of_sum(node, values, may_count, any_size=any_size)
    if name == "mul":
        return _of_product(node, values, may_count)
    if name in _DROPOUTS:
        return _of_dropout(node, values)
    if is_norm(node) or name == "prelu":
        return _of_channelwise(node, values)
    if name in _FILLS:
        return _nowhere(node)
    if is_pointwise(node):
        return _any(node, values)
    if name.startswith(_MIXES):
        counts = _where_nonzero if any_size and _adds_up(node) else _where_open
        mixed = run(node, values, lambda value: counts(value).float())
        # Further results, such as the indices of a max pool, are open where the first is.
        return [mixed[0] != 0 for _ in mixed] if isinstance(mixed, (list, tuple)) else mixed != 0
    return _all(node, values, any_size=any_size)


def _where_open(value: Value) -> Tensor:
    return value.open


def _where_nonzero(value: Value) -> Tensor:
    return value.open | (value.tensor != 0)


def _adds_up(node: Node) -> bool:
    """Whether the mean of equal values may be another value, as in a sum or a padded pool."""
    name = operator_name(node)
    if not name.startswith("avg_pool"):
        return name == "sum"
    given = arguments(node)
    padded = any(given["padding"]) and given["count_include_pad"]
    return padded or given.get("divisor_override") is not None


def _nowhere(node: Node) -> Tensor:
    like = node.meta["val"]
    return torch.zeros(like.shape, dtype=torch.bool, device=like.device)


def _any(node: Node, values: Values) -> Tensor:
    result = _nowhere(node)
    for value in _operands(node, values):
        result |= value.open
    return result


def _of_product(node: Node, values: Values, may_count: Callable[[Node], Tensor]) -> Tensor:
    """Return where a product is open: any factor is open, and no factor is zero for certain."""
    result = _any(node, values)
    for argument in node.all_input_nodes:
        if isinstance(values[argument], Value):
            result &= may_count(argument)
    return result


def _of_channelwise(node: Node, values: Values) -> Tensor:
    """Return where a call that scales or shifts channels is open.

    The scales and shifts may depend on the input too. Then every nonzero entry is open, and after a
    normalisation every entry.
    """
    first, *others = _operands(node, values)
    if not any(bool(other.open.any()) for other in others):
        return first.open
    return first.open | (first.tensor != 0) | is_norm(node)


def _of_dropout(node: Node, values: Values) -> Tensor:
    """Return where dropout is open: it keeps zeros, and any other value may become zero.

    Alpha dropout replaces dropped values by a number that is not zero, and shifts all others.
    """
    given, value = arguments(node), _first(node, values)
    dropping = given["train"] and given["p"] > 0
    if dropping and "alpha" in operator_name(node):
        return torch.ones_like(value.open)
    return value.open | (value.tensor != 0) if dropping else value.open.clone()


def _of_sum(
    node: Node, values: Values, may_count: Callable[[Node], Tensor], *, any_size: bool
) -> Tensor:
    """Return which sums are open: those with an open entry whose factor may be nonzero.

    The operator itself finds these sums. It is called with 0 and 1 as values: 1 for an open entry,
    for a factor that may be nonzero, and for an open added term. A sum above 0 is open. With
    ``any_size`` a sum is open if any product in it may be nonzero.
    """
    left, right, added = factors(node)
    of_added = None if added is None else values[added].open.float()
    if any_size:
        return _sum(node, may_count(left).float(), may_count(right).float(), of_added) != 0
    opened = _sum(node, values[left].open.float(), may_count(right).float(), of_added) != 0
    if values[right].open.any():
        opened |= _sum(node, may_count(left).float(), values[right].open.float(), None) != 0
    return opened


def _sum(node: Node, left: Tensor, right: Tensor, added: Tensor | None) -> Tensor:
    if operator_name(node) == "addmm":
        return left @ right if added is None else left @ right + added
    args = [left, right, *(added for _ in node.args[2:3]), *node.args[3:]]
    assert callable(node.target)
    kwargs = {**node.kwargs, "bias": added} if "bias" in node.kwargs else node.kwargs
    result: Tensor = node.target(*args, **kwargs)
    return result


def _all(node: Node, values: Values, *, any_size: bool) -> Any:
    """Return the result for an unknown operator: if any argument is open, all entries are."""
    some = any_size or any(bool(value.open.any()) for value in _operands(node, values))
    results = node.meta["val"]
    several = isinstance(results, (list, tuple))
    opened = [
        torch.full(result.shape, some, device=result.device) if isinstance(result, Tensor) else None
        for result in (results if several else [results])
    ]
    return opened if several else opened[0]


def _operands(node: Node, values: Values) -> list[Value]:
    found = [values[argument] for argument in node.all_input_nodes]
    return [value for value in found if isinstance(value, Value)]


def _first(node: Node, values: Values) -> Value:
    value = values[node.all_input_nodes[0]]
    assert isinstance(value, Value)
    return value


def nonzero_after_training(
    node: Node, values: Mapping[Node, Any], made: Mapping[Node, Any], result: Any
) -> Any:
    """Return where a call's result may be nonzero after further training.

    Args:
        node: the call.
        values: the values of its arguments.
        made: where each argument that is computed from parameters alone may be nonzero.
        result: the result of the call.

    Returns:
        A tensor of the result's shape, or a list for several results; ``None`` if the result
        depends on the input, or on no parameter.
    """
    operands = [one for one in node.all_input_nodes if isinstance(values[one], Value)]
    if not any(one in made for one in operands):
        return None
    if any(bool(values[one].open.any()) for one in operands if one not in made):
        return None
    counts = {one: made.get(one, values[one].tensor != 0) for one in operands}
    if is_move(node):
        moved = {one: Value(values[one].tensor, counts[one]) for one in operands}
        return run(node, moved, lambda value: value.open)
    if not isinstance(result, Tensor):
        return [torch.ones_like(one, dtype=torch.bool) for one in result]
    everywhere = torch.ones_like(result, dtype=torch.bool)
    if operator_name(node) == "mul":
        for one in counts.values():
            everywhere = everywhere & one
        return everywhere
    if is_pointwise(node):
        anywhere = result != 0
        for one in counts.values():
            anywhere = anywhere | one
        return anywhere
    return everywhere
