"""Assembling every way to run a model, in each number format that may be handed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseopt.speedup.equivalence import disagreement
from sparseopt.speedup.inference.candidates import candidates_for, uncovered
from sparseopt.speedup.inference.copies import lost_in_programs, lost_in_trace
from sparseopt.speedup.inference.dense_ways import AS_IT_IS, Prepared, UnderAutocast, dense_ways
from sparseopt.speedup.inference.network import ModuleNetwork, Network
from sparseopt.speedup.inference.regions import Candidates, choose_layers
from sparseopt.speedup.inference.report import LayerTimes
from sparseopt.speedup.inference.tracing import take_apart
from sparseopt.utils.probe import preserve_model_state

__all__ = ["SPARSE", "Assembly", "Format", "has_bfloat16"]

SPARSE: Final = "sparse"
_EVERYWHERE: Final = "sparse everywhere"
_FOLDED: Final = "folded"


@dataclass
class Format:
    """All ways of the model in one number format.

    Attributes:
        name: of the number format.
        ways: modules by name of the way.
        failed: why others are not among them.
        layers: by sparse way, what each layer takes, and what it chose.
    """

    name: str
    ways: dict[str, nn.Module]
    failed: dict[str, str]
    layers: dict[str, list[LayerTimes]]


class Assembly:
    """A model, its masks and inputs, and all ways to run it.

    Each way is run once, and is none if it does not compute the same.

    Args:
        model: the model; it is left alone.
        copied: its copy, in evaluation mode, with hooks of the user only.
        masks: which weights are live, by canonical name of the parameter.
        args: positional inputs.
        kwargs: keyword inputs.
        programs: which frozen programs are among the ways: ``"scripted"``, ``"compiled"``.

    Attributes:
        device: of the model.
        dtype: the number format that it computes in now.
        lost: what of its code a graph would not run, or ``None``.
        lost_in_programs: the same of frozen programs.
        untraced: why it can't be traced, or ``None``.
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
        self.expected = self._outputs(model)
        self.copied = copied
        self.lost = lost_in_trace(copied, *self.inputs())
        self.lost_in_programs = lost_in_programs(copied, self.lost)
        self.network, self.untraced = take_apart(copied, *self.inputs(), self.lost)

    def formats(self) -> list[Format]:
        """Return all ways in the model's number format, and in bfloat16 if that is another."""
        formats = [self._ways_in(self.dtype, None)]
        if self.dtype == torch.float32 and has_bfloat16(self.device):
            formats.append(self._ways_in(torch.bfloat16, torch.bfloat16))
        return formats

    def _ways_in(self, dtype: torch.dtype, other: torch.dtype | None) -> Format:
        """Return all ways; ``other`` is the number format that the model is converted to."""
        name = str(dtype).removeprefix("torch.")
        ways, failed = dense_ways(
            self.copied, *self.inputs(), other, self.programs, self.lost_in_programs
        )
        for way in list(ways):
            fault = None if way == AS_IT_IS else self._fault(ways[way], dtype)
            if fault is not None:
                del ways[way]
                failed[way] = fault
        form = Format(name, ways, failed, {})
        self._add_networks(form, dtype, other)
        return form

    def _add_networks(self, form: Format, dtype: torch.dtype, other: torch.dtype | None) -> None:
        """Add the ways that exchange layers: dense, and sparse."""
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
        for way, plan in plans.items():
            exchanged: Mapping[str, str] = plan
            if any(chosen not in {"dense", "full"} for chosen in plan.values()):
                exchanged = self._add(form, way, candidates, plan, other)
            form.layers[way] = [
                _layer_times(one, exchanged[one.site.name], obstacles.get(one.site.name))
                for one in candidates
                if one.density < 1
            ] + absent

    def _add(
        self,
        form: Format,
        way: str,
        candidates: list[Candidates],
        plan: Mapping[str, str],
        other: torch.dtype | None,
    ) -> Mapping[str, str]:
        """Add a way, if it computes the same, and return what then computes each layer."""
        layers = {one.site.name: one.layers[plan[one.site.name]] for one in candidates}
        built, fault = self._tried(self.network, layers, other)
        if fault is not None:
            form.failed[way] = fault
            if way == _FOLDED:
                return plan
            plan, built = self._one_by_one(layers, plan, other)
        if built is not None:
            form.ways[way] = built
        return plan

    def _one_by_one(
        self,
        layers: Mapping[str, nn.Module],
        plan: Mapping[str, str],
        other: torch.dtype | None,
    ) -> tuple[dict[str, str], nn.Module | None]:
        """Exchange those layers alone, without folding, with which the model computes the same."""
        network = ModuleNetwork(self.copied, self.network.sites)
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
        """Return the model with these layers, and what is wrong with it."""
        try:
            built = self._built(network, layers, other)
        # Whatever the model's code makes of a layer that is none of torch's.
        except Exception as error:
            return None, f"the model can't be built ({type(error).__name__}: {error})"
        return built, self._fault(built, other or self.dtype)

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
        """Return a copy of the inputs, which a model may write to."""
        copied: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            Tensor, Tensor.clone, (self.args, dict(self.kwargs))
        )
        return copied

    def _outputs(self, model: nn.Module) -> Any:
        args, kwargs = self.inputs()
        with preserve_model_state(model):
            torch.manual_seed(0)
            return model.eval()(*args, **kwargs)

    def _fault(self, model: nn.Module, dtype: torch.dtype) -> str | None:
        """Return what is wrong with what a way computes in a number format, or ``None``."""
        try:
            found = self._outputs(model)
        except Exception as error:
            return f"the model does not run ({type(error).__name__}: {error})"
        expected, found = (_rounded(one, dtype) for one in (self.expected, found))
        difference = disagreement(expected, found)
        return None if difference is None else f"the model's output {difference}"


def _rounded(outputs: Any, dtype: torch.dtype) -> Any:
    """Return outputs in a number format, whose precision decides what counts as the same."""

    def convert(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return tree_map_only(Tensor, convert, outputs)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a float32 model on this device can also be run in bfloat16."""
    if torch.is_autocast_enabled(device.type):
        return False
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _least_dense(one: Candidates) -> str:
    """Return the way that reads the fewest weights."""
    return next((way for way in one.layers if way != "dense"), "dense")


def _layer_times(one: Candidates, chosen: str, obstacle: str | None) -> LayerTimes:
    shape = "x".join(map(str, one.inputs[0].shape)) if one.inputs else "not called"
    return LayerTimes(one.site.name, one.density, shape, one.seconds, chosen, obstacle)
