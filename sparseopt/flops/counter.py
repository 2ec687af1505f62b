"""Counts the multiplications by weights in one forward pass, with fused kernels switched off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparseopt.flops.operands import WeightMemory
from sparseopt.masks.maskable_weights import computed_from
from sparseopt.masks.selection import breaks_zeros
from sparseopt.utils.probe import no_attention_fast_path, preserve_model_state
from sparseopt.utils.wrappers import canonical_name

__all__ = ["Operations", "count_operations", "no_fused_kernels"]

aten = torch.ops.aten


class Operations:
    """FLOPs of one forward pass, by parameter name.

    Attributes:
        dense: for each parameter, FLOPs with every weight live, without the bias.
        sparse: for each parameter, FLOPs with its mask, without the bias.
        bias: for each parameter, the additions of its layer's bias.
        live_bias: the same without the entries of the bias that a mask drops.
        unnamed: FLOPs of weights that are computed from parameters without a mask, biases included.
    """

    def __init__(self) -> None:
        self.dense: dict[str, float] = {}
        self.sparse: dict[str, float] = {}
        self.bias: dict[str, float] = {}
        self.live_bias: dict[str, float] = {}
        self.unnamed = 0.0

    def add(self, name: str, *, dense: float, sparse: float, bias: float, live_bias: float) -> None:
        """Add one operation."""
        self.dense[name] = self.dense.get(name, 0.0) + dense
        self.sparse[name] = self.sparse.get(name, 0.0) + sparse
        self.bias[name] = self.bias.get(name, 0.0) + bias
        self.live_bias[name] = self.live_bias.get(name, 0.0) + live_bias


def count_operations(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Operations:
    """Run ``model`` once, in eval mode, and count convolutions and linear maps.

    The count includes every convolution, every call of :func:`torch.nn.functional.linear` and
    :func:`torch.nn.functional.bilinear`, and every matrix product in which one operand is a weight
    of the model. An operand is a weight if it has the weight's memory, is a view or a copy of the
    weight, or consists of entries of a masked weight or of multiples of them. So modules used
    twice, parts of a packed projection and functional calls on a parameter are counted correctly,
    and products of two activations are not counted. A convolution takes ``2 * positions * live``
    FLOPs. A linear or bilinear map takes ``2 * rows * live``, and one addition per row and entry of
    its bias that no mask drops.

    The model is left as it was: training modes, buffers and random state are restored.

    Args:
        model: the model.
        masks: bool masks of the weights' shapes, by the parameter's name. Weights without a mask
            count as dense.
        args: positional inputs.
        kwargs: keyword inputs.
    """
    counter = _Counter(model, masks)
    with ExitStack() as stack:
        # Gradients come second, because torch.inference_mode(False) switches them on.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_model_state(model))
        stack.enter_context(no_fused_kernels(model))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        with _computed_weights(model, counter), counter, _LinearCalls(counter):
            model(*args, **kwargs)
    return counter.operations


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that multiply by a weight.

    Invariant: each multiplication is counted once. While :meth:`linear` is active, the matrix
    products inside that linear map are not counted again.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = Operations()
        self._weights = WeightMemory(model, masks)
        self._counts_products = True
        self._biased = {
            weight
            for name, _ in model.named_parameters()
            for weight in _weights_of_bias(canonical_name(name))
        }
        self._live_biases = {
            weight: float(mask.float().mean())
            for name, mask in masks.items()
            for weight in _weights_of_bias(name)
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            # In inference mode, operators such as conv2d and matmul arrive undecomposed.
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in (aten.convolution, aten._convolution):
            self._convolution(args[0], args[1], out, transposed=bool(args[6]))
        elif packet in (aten._to_copy, aten.clone):
            self._weights.note_copy(args[0], out)
        elif packet is aten.mul:
            self._weights.note_product(args, out)
        elif packet is aten.div:
            self._weights.note_product(args[:1], out)
        elif packet in (aten.index, aten.index_select):
            self._weights.note_selection(args[0], out, lambda mask: func(mask, *args[1:]))
        elif not self._counts_products:
            pass
        elif packet in (aten.mm, aten.bmm):
            self._product(args[0], args[1], biased=False)
        elif packet in (aten.addmm, aten.baddbmm, aten.addbmm, aten._sparse_addmm):
            self._product(args[1], args[2], biased=packet is aten.addmm)
        elif packet is aten.mv:
            self._product(args[0], args[1].unsqueeze(-1), biased=False)
        elif packet is aten.addmv:
            self._product(args[1], args[2].unsqueeze(-1), biased=True)
        elif packet in (aten.dot, aten.vdot):
            self._product(args[0].unsqueeze(0), args[1].unsqueeze(-1), biased=False)
        elif packet is aten._trilinear:
            self._bilinear(args[0], args[1])
        elif packet is aten._grouped_mm:
            self._grouped_product(*args, **kwargs)
        return out

    def note_computed(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """Give ``weight``, which is computed from ``parameter``, the parameter's mask."""
        if self._weights.has_mask(parameter):
            self._weights.note_copy(parameter, weight)

    @contextmanager
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
        """Count one linear map, and do not count the matrix products inside it."""
        rows = math.prod(x.shape[:-1])
        additions = 0.0 if bias is None else float(rows * weight.shape[0])
        self._add(weight, rows, weight.numel(), additions)
        self._counts_products = False
        try:
            yield
        finally:
            self._counts_products = True

    def _convolution(self, x: Tensor, weight: Tensor, out: Tensor, *, transposed: bool) -> None:
        positions = x.shape[0] * math.prod((x if transposed else out).shape[2:])
        self._add(weight, positions, weight.numel(), 0.0)

    def _bilinear(self, x: Tensor, weight: Tensor) -> None:
        """Count a bilinear map, in which each entry of a weight multiplies a product of inputs."""
        rows = math.prod(x.shape[:-1])
        found = self._weights.find(weight)
        has_bias = found is not None and found[0] in self._biased
        self._add(weight, rows, weight.numel(), float(rows * weight.shape[0]) if has_bias else 0.0)

    def _product(self, left: Tensor, right: Tensor, *, biased: bool) -> None:
        """Count a matrix product if one operand is a weight; the right operand is tried first."""
        for weight, other, axis in ((right, left, -2), (left, right, -1)):
            found = self._weights.find(weight)
            if found is None:
                continue
            rows = other.shape[axis]
            features = math.prod(other.shape[:-2]) * weight.shape[-1 if axis == -2 else -2]
            has_bias = biased or found[0] in self._biased
            self._add(weight, rows, weight.numel(), float(rows * features) if has_bias else 0.0)
            return

    def _grouped_product(
        self,
        left: Tensor,
        right: Tensor,
        offs: Tensor | None = None,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        """Count a product of groups, in which each expert multiplies the rows up to its offset."""
        if offs is None or left.dim() != 2 or right.dim() != 3:
            self._product(left, right, biased=bias is not None)
            return
        rows = offs.diff(prepend=offs.new_zeros(1)).tolist()
        for number, expert in zip(rows, right.unbind(), strict=True):
            additions = 0.0 if bias is None else float(number * expert.shape[-1])
            self._add(expert, number, expert.numel(), additions)

    def _add(self, weight: Tensor, uses: int, numel: int, bias: float) -> None:
        """Add an operation that multiplies ``uses`` times by each entry of ``weight``."""
        found = self._weights.find(weight)
        if found is None:
            self.operations.unnamed += 2.0 * uses * numel + bias
            return
        name, live = found
        self.operations.add(
            name,
            dense=2.0 * uses * numel,
            sparse=2.0 * uses * live,
            bias=bias,
            live_bias=bias * self._live_biases.get(name, 1.0),
        )


@contextmanager
def _computed_weights(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Pass the weights that modules compute in this block to ``counter``."""

    def parametrized(module: nn.Module, _: Any, weight: Tensor) -> None:
        for parameter in module.parameters(recurse=False):
            counter.note_computed(parameter, weight)

    def hooked(module: nn.Module, _: Any) -> None:
        name, weight = computed_from(module), getattr(module, "weight", None)
        if name is not None and isinstance(weight, Tensor):
            counter.note_computed(module.get_parameter(name), weight)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ParametrizationList):
                if breaks_zeros(module):
                    continue
                stack.callback(module.register_forward_hook(parametrized).remove)
            elif computed_from(module) is not None:
                stack.callback(module.register_forward_pre_hook(hooked).remove)
        yield


class _LinearCalls(TorchFunctionMode):
    """Counts calls of ``F.linear``, which reach the operator level as several operators.

    ``_Counter`` counts the rest: linear maps inside other functions, such as attention, and matrix
    products that the model's code writes out.
    """

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # vmap hides a dimension here, which the products of the operator level have.
        if func is not F.linear or torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        with self._counter.linear(*_linear_operands(*args, **kwargs)):
            return func(*args, **kwargs)


def _linear_operands(
    input: Tensor,  # noqa: A002 - the name that callers of F.linear may use
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _weights_of_bias(bias: str) -> list[str]:
    """Return the names that the weight of a bias may have.

    Example:
        >>> _weights_of_bias("lstm.bias_ih_l0")
        ['lstm.weight_ih_l0']
    """
    path, dot, name = bias.rpartition(".")
    if "bias" not in name:
        return []
    weights = [name.replace("bias", "weight")]
    if name == "in_proj_bias":
        weights += ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return [f"{path}{dot}{weight}" for weight in weights]


@contextmanager
def no_fused_kernels(model: nn.Module) -> Iterator[None]:
    """Run attention and the recurrent layers of ``model`` operator by operator in this block."""
    with ExitStack() as stack:
        stack.enter_context(no_attention_fast_path())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


@contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    enabled = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled
