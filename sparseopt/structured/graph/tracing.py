"""The operations of a model, as ``torch.export`` traces them, with the names of its tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from sparseopt.structured.graph.measured_sizes import measure_sizes
from sparseopt.utils.errors import UntraceableModelError
from sparseopt.utils.probe import (
    no_attention_fast_path,
    no_detection_of_causal_masks,
    no_key_value_cache,
    preserve_model,
)

__all__ = [
    "Trace",
    "arguments",
    "is_number",
    "only_checks",
    "operator_name",
    "trace",
    "where",
]

# Only recurrent layers make torch warn of this: they list their weights again during the export.
_ASSIGNED: Final = r"The tensor attributes (self\.(\w+\.)*_flat_weights\[\d+\](, )?)+ were assigned"

_NUMBERS: Final = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)


@dataclass(frozen=True)
class Trace:
    """One forward pass as a graph of ATen operators.

    Attributes:
        module: the graph; parameters and buffers are placeholders in it, before the inputs.
        tensors: the name of the parameter or buffer of each placeholder; a shared tensor has one
            name.
        constants: values of placeholders that are tensors written in the model's code.
        measured: the calls whose results have a size that depends on values of the input.
        training: whether this is the pass in training mode.
        modules: the model's modules by path; a shared module has several paths.
    """

    module: GraphModule
    tensors: Mapping[Node, str]
    constants: Mapping[Node, Tensor]
    measured: frozenset[Node]
    training: bool
    modules: Mapping[str, nn.Module]

    def is_made_by(self, node: Node, kind: type[nn.Module]) -> bool:
        """Whether a call was made by a module of class ``kind``, or inside such a module."""
        stack = node.meta.get("nn_module_stack") or {}
        # In a second call of the same module, its path is followed by "@" and a number.
        paths = (path.partition("@")[0] for path, _ in stack.values())
        return any(isinstance(self.modules.get(path), kind) for path in paths)


def trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> Trace:
    """Return the graph of ``model(*args, **kwargs)`` in training or in evaluation mode.

    The model is left as it was.

    Raises:
        UntraceableModelError: if ``torch.export`` refuses the model.
    """
    with (
        preserve_model(model),
        no_attention_fast_path(),
        no_detection_of_causal_masks(model),
        no_key_value_cache(model),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", _ASSIGNED, UserWarning)
        model.train(training)
        try:
            program = torch.export.export(model, args, dict(kwargs), strict=False)
        except Exception as error:
            mode = "training" if training else "evaluation"
            raise UntraceableModelError(
                f"model={type(model).__name__}(...) has no graph in {mode} mode, because "
                f"torch.export refuses it: {_first_line(error)}"
            ) from error
        # Operations with unused results, such as attention weights, must not block channels.
        program.graph.eliminate_dead_code()
        placeholders = program.graph.find_nodes(op="placeholder")
        signature = program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        written = signature.inputs_to_lifted_tensor_constants
        sources = {node: named.get(node.name, written.get(node.name)) for node in placeholders}
        leaves = tree_leaves((args, dict(kwargs)))
        measured = measure_sizes(program.graph_module, _values(program, sources, leaves))
    canonical = _names_by_tensor(model)
    return Trace(
        program.graph_module,
        {node: canonical[named[node.name]] for node in placeholders if node.name in named},
        {
            node: program.constants[written[node.name]]
            for node in placeholders
            if node.name in written
        },
        measured,
        training,
        dict(model.named_modules(remove_duplicate=False)),
    )


def _values(
    program: ExportedProgram, sources: Mapping[Node, str | None], leaves: Iterable[Any]
) -> Iterator[Any]:
    """Return copies of the values of a program's placeholders.

    Args:
        program: the program.
        sources: the name of the program's own tensor of each placeholder; ``None`` for inputs.
        leaves: the inputs, in the order of their placeholders.
    """
    own = {**program.state_dict, **program.constants}
    given = iter(leaves)
    for name in sources.values():
        value = next(given) if name is None else own[name]
        yield value.detach().clone() if isinstance(value, Tensor) else value


def is_number(node: Node) -> bool:
    """Whether the result of a node is one number, such as that of ``.item()``."""
    return isinstance(node.meta.get("val"), _NUMBERS)


def arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of an operator call by the names of its schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found = dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name not in found and argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def operator_name(node: Node) -> str:
    """Return the name of an operator without its overload: ``"conv2d"``, ``"add_"``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def only_checks(node: Node) -> bool:
    """Whether a call only asserts something: it neither returns nor writes anything."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not node.target._schema.returns and not node.target._schema.is_mutable


def where(node: Node) -> str:
    """Return the path of the module that made this call, or the operator's name at the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else operator_name(node)


def _names_by_tensor(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tensor, by each of its names."""
    first: dict[Tensor, str] = {}
    names = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names[name] = first.setdefault(tensor, name)
    return names


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
