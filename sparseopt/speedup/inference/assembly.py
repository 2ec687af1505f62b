"""Builds all implementations of a model, dense and sparse, in each number format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseopt.speedup.equivalence import disagreement, is_comparable
from sparseopt.speedup.inference.candidates import candidates_for, uncovered
from sparseopt.speedup.inference.copies import skipped_by_programs, skipped_by_trace
from sparseopt.speedup.inference.dense_implementations import (
    AS_IT_IS,
    Prepared,
    UnderAutocast,
    dense_implementations,
)
from sparseopt.speedup.inference.network import ModuleNetwork, Network
from sparseopt.speedup.inference.regions import Candidates, choose_layers
from sparseopt.speedup.inference.report import LayerTimes
from sparseopt.speedup.inference.tracing import take_apart
from sparseopt.utils.nested import copy_of, leaves, map_leaves
from sparseopt.utils.probe import preserve_model

__all__ = ["SPARSE", "Assembly", "Format", "has_bfloat16"]

SPARSE: Final = "sparse"
_EVERYWHERE: Final = "sparse everywhere"
_FOLDED: Final = "folded"


@dataclass
class Format:
    """All implementations of the model in one number format.

    Attributes:
        name: the number format.
        implementations: the modules, by name of the implementation.
        failed: for each implementation that is not available, the reason.
        layers: for each sparse implementation, the times and the choice of each layer.
    """

    name: str
    implementations: dict[str, nn.Module]
    failed: dict[str, str]
    layers: dict[str, list[LayerTimes]]


class Assembly:
    """Builds all implementations of a model with its masks.

    Each implementation is run once. If it does not compute the same as the model, it is left out.

    Args:
        model: the model, which is not changed.
        copied: a copy of the model, in evaluation mode, with only the hooks of the user.
        masks: which weights are live, by canonical name of the parameter.
        args: positional inputs.
        kwargs: keyword inputs.
        programs: which frozen programs to build: ``"scripted"``, ``"compiled"``.

    Attributes:
        device: the device of the model.
        dtype: the number format that the model computes in now.
        expected: the outputs of the model.
        inputs_after: the inputs after the call.
        writes_inputs: whether the call changed its inputs, such as a state or a list of features.
        skipped_by_trace: code of the model that its graph would not run, or ``None``.
        skipped_by_programs: code of the model that a frozen program would not run, or ``None``.
        untraced: why the model can't be traced, or ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        copied: nn.Module,
        masks: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        programs: Collection[str],
    ) -> None:
        self.model = model
        self.masks = masks
        self.args = args
        self.kwargs = kwargs
        self.programs = programs
        first = next((one for one in model.parameters() if one.is_floating_point()), None)
        self.device = torch.device("cpu") if first is None else first.device
        own = torch.float32 if first is None else first.dtype
        self.autocast = torch.is_autocast_enabled(self.device.type) and own == torch.float32
        self.dtype = torch.get_autocast_dtype(self.device.type) if self.autocast else own
        # Objects in the inputs are copied until it is known that the model doesn't write to them.
        self.writes_inputs = True
        given = self.inputs()
        before = _versions(given)
        self.expected = self._run(model, given)
        self.inputs_after = given
        self.writes_inputs = _versions(given) != before
        self._two_samples = self._of_two_samples(model)
        self.copied = copied
        self.skipped_by_trace = (
            "forward() writes to its inputs"
            if self.writes_inputs
            else skipped_by_trace(copied, *self.inputs())
        )
        self.skipped_by_programs = skipped_by_programs(copied, self.skipped_by_trace)
        self.network, self.untraced = take_apart(copied, *self.inputs(), self.skipped_by_trace)

    def formats(self) -> list[Format]:
        """Return all implementations in the model's number format, and in bfloat16 if available.

        A model in bfloat16 gets converted copies of its inputs, so it could not write to them.
        """
        formats = [self._implementations_in(self.dtype, None)]
        is_single = self.dtype == torch.float32 and not self.writes_inputs
        if is_single and has_bfloat16(self.device):
            formats.append(self._implementations_in(torch.bfloat16, torch.bfloat16))
        return formats

    def _implementations_in(self, dtype: torch.dtype, other: torch.dtype | None) -> Format:
        """Return all implementations; ``other`` is the number format to convert the model to."""
        implementations, failed = dense_implementations(
            self.copied, *self.inputs(), other, self.programs, self.skipped_by_programs
        )
        for name, module in list(implementations.items()):
            fault = None if name == AS_IT_IS else self._fault(module, dtype)
            if fault is not None:
                del implementations[name]
                failed[name] = fault
        form = Format(str(dtype).removeprefix("torch."), implementations, failed, {})
        self._add_networks(form, dtype, other)
        return form

    def _add_networks(self, form: Format, dtype: torch.dtype, other: torch.dtype | None) -> None:
        """Add the implementations that replace layers: folded, and sparse."""
        candidates, obstacles = candidates_for(self.network, self.masks, dtype)
        dense = {one.site.name: "dense" for one in candidates}
        self._add(form, _FOLDED, candidates, dense, other)
        plans = {SPARSE: dense}
        if any(one.density < 1 and len(one.layers) > 1 for one in candidates):
            plans[SPARSE] = choose_layers(candidates, self.device)
            everywhere = {one.site.name: _least_dense(one) for one in candidates}
            if everywhere != plans[SPARSE]:
                plans[_EVERYWHERE] = everywhere
        absent = uncovered(self.copied, self.network, self.masks)
        for implementation, plan in plans.items():
            exchanged: Mapping[str, str] = plan
            if any(chosen not in {"dense", "full"} for chosen in plan.values()):
                exchanged = self._add(form, implementation, candidates, plan, other)
            form.layers[implementation] = [
                _layer_times(one, exchanged[one.site.name], obstacles.get(one.site.name))
                for one in candidates
                if one.density < 1
            ] + absent

    def _add(
        self,
        form: Format,
        implementation: str,
        candidates: list[Candidates],
        plan: Mapping[str, str],
        other: torch.dtype | None,
    ) -> Mapping[str, str]:
        """Add an implementation, and return the kind of each of its layers.

        If the model does not compute the same with all layers replaced, they are replaced one by
        one, and those that change the result stay dense.
        """
        layers = {one.site.name: one.layers[plan[one.site.name]] for one in candidates}
        built, fault = self._tried(self.network, layers, other)
        if fault is not None:
            form.failed[implementation] = fault
            if implementation == _FOLDED:
                return plan
            plan, built = self._one_by_one(layers, plan, other)
        if built is not None:
            form.implementations[implementation] = built
        return plan

    def _one_by_one(
        self,
        layers: Mapping[str, nn.Module],
        plan: Mapping[str, str],
        other: torch.dtype | None,
    ) -> tuple[dict[str, str], nn.Module | None]:
        """Replace layers one by one without folding, if the model still computes the same."""
        network = ModuleNetwork(self.copied, self.network.sites, self.network.orders)
        made = dict.fromkeys(plan, "dense")
        working: dict[str, nn.Module] = {}
        last: nn.Module | None = None
        for name, layer in layers.items():
            site = self.network.sites[name]
            if plan[name] in {"dense", "full"} or site.norm is not None or site.bounds is not None:
                continue
            built, fault = self._tried(network, {**working, name: layer}, other)
            if fault is None:
                working[name], made[name], last = layer, plan[name], built
        return made, last

    def _tried(
        self,
        network: Network | ModuleNetwork,
        layers: Mapping[str, nn.Module],
        other: torch.dtype | None,
    ) -> tuple[nn.Module | None, str | None]:
        """Return the model with these layers, and why it can't be used, or ``None``."""
        try:
            built = self._built(network, layers, other)
        # The model's code may read attributes that only torch's own layers have.
        except Exception as error:
            return None, f"the model can't be built ({type(error).__name__}: {error})"
        return built, self._fault(built, other or self.dtype) or self._fault_of_two(
            built, other or self.dtype
        )

    def _built(
        self,
        network: Network | ModuleNetwork,
        layers: Mapping[str, nn.Module],
        other: torch.dtype | None,
    ) -> nn.Module:
        built = network.build(layers, other)
        if self.autocast:
            return UnderAutocast(built, self.device.type, self.dtype)
        return built if other is None else Prepared(built, other)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a copy of the inputs, because a model may write to its inputs."""
        given = self.args, dict(self.kwargs)
        copied: tuple[tuple[Any, ...], dict[str, Any]] = (
            copy_of(given) if self.writes_inputs else tree_map_only(Tensor, Tensor.clone, given)
        )
        return copied

    def _of_two_samples(self, model: nn.Module) -> tuple[Any, Any] | None:
        """Return inputs of two samples and the model's outputs, if the example is one sample.

        One sample has the same memory in every layout of maps, so that code which takes one layout
        only would run on it.
        """

        def twice(leaf: Any) -> Any:
            is_one = isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.shape[0] == 1
            return torch.cat([leaf, leaf]) if is_one else leaf

        def is_of_maps(leaf: Any) -> bool:
            return isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.shape[0] == 1

        if not any(map(is_of_maps, leaves(self.inputs()))):
            return None
        given = map_leaves(twice, self.inputs())
        try:
            return given, self._run(model, copy_of(given))
        # The model may take one sample only.
        except Exception:
            return None

    def _run(self, model: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the outputs of a model, which may write to ``given``."""
        args, kwargs = given
        with preserve_model(model):
            torch.manual_seed(0)
            return model.eval()(*args, **kwargs)

    def _fault(self, model: nn.Module, dtype: torch.dtype) -> str | None:
        """Return why a model computes something else in a number format, or ``None``."""
        if not is_comparable(self.expected):
            return "the model's output has no numbers to compare"
        given = self.inputs()
        fault = self._fault_on(given, self.expected, model, dtype)
        if fault is None and self.writes_inputs:
            fault = _difference("input", self.inputs_after, given, dtype)
        return fault

    def _fault_of_two(self, model: nn.Module, dtype: torch.dtype) -> str | None:
        """Return why a model computes something else for two samples, or ``None``."""
        if self._two_samples is None:
            return None
        given, expected = self._two_samples
        fault = self._fault_on(copy_of(given), expected, model, dtype)
        return None if fault is None else f"{fault}, for two samples"

    def _fault_on(
        self, given: Any, expected: Any, model: nn.Module, dtype: torch.dtype
    ) -> str | None:
        """Return why a model fails on inputs, or how its outputs differ, or ``None``."""
        try:
            outputs = self._run(model, given)
        except Exception as error:
            return f"the model does not run ({type(error).__name__}: {error})"
        return _difference("output", expected, outputs, dtype)


def _difference(name: str, expected: Any, found: Any, dtype: torch.dtype) -> str | None:
    """Return how values differ once both are rounded to a number format, which sets the tolerance.

    Their own number formats have to be equal.
    """
    pair = leaves(expected), leaves(found)
    formats = [[one.dtype for one in values if isinstance(one, Tensor)] for values in pair]
    before, after = ([_rounded(one, dtype) for one in values] for values in pair)
    difference = disagreement(before, after, dtype)
    if difference is None and formats[0] != formats[1]:
        difference = "has another number format"
    return None if difference is None else f"the model's {name} {difference}"


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    is_rounded = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_rounded else value


def _versions(inputs: Any) -> list[tuple[int, int]]:
    """Return the identity of each leaf, and of a tensor the number of writes to it."""
    return [
        (id(one), one._version if isinstance(one, Tensor) and not one.is_inference() else 0)
        for one in leaves(inputs)
    ]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a float32 model on this device can also be run in bfloat16."""
    if torch.is_autocast_enabled(device.type):
        return False
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _least_dense(one: Candidates) -> str:
    """Return the kind of layer that reads the fewest weights."""
    return next((kind for kind in one.layers if kind != "dense"), "dense")


def _layer_times(one: Candidates, chosen: str, obstacle: str | None) -> LayerTimes:
    shape = "x".join(map(str, one.inputs[0].shape)) if one.inputs else "not called"
    return LayerTimes(one.site.name, one.density, shape, one.seconds, chosen, obstacle)
