"""``condense``: a copy of a model for inference, in the way that is fastest on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.equivalence import disagreement
from sparseopt.speedup.inference.candidates import candidates_for, uncovered
from sparseopt.speedup.inference.dense_ways import AS_IT_IS, Prepared, dense_ways
from sparseopt.speedup.inference.masks import Masks, masks_by_name
from sparseopt.speedup.inference.network import ModuleNetwork, Network, take_apart
from sparseopt.speedup.inference.regions import Candidates, choose_layers, clock_of
from sparseopt.speedup.inference.report import CondensationReport, LayerTimes
from sparseopt.speedup.timing import Timing, time_in_turn
from sparseopt.utils.hooks import copy_without_hooks
from sparseopt.utils.probe import preserve_model_state
from sparseopt.utils.random import normal
from sparseopt.utils.validation import check_count
from sparseopt.utils.wrappers import unwrapped

__all__ = ["Condensation", "Condensed", "condense"]

Precision = Literal["same", "fastest"]

_SPARSE: Final = "sparse"
_EVERYWHERE: Final = "sparse everywhere"
_FOLDED: Final = "folded"
_WARMUP: Final = 2
#: One measurement takes about so long at least, in seconds.
_LONG_ENOUGH: Final = 5e-3


@dataclass(frozen=True)
class Condensed:
    """What :func:`condense` returns.

    Attributes:
        model: the copy for inference, in evaluation mode. It takes the inputs that the model took.
        report: what was timed and chosen; print it.

    Example:
        >>> import torch
        >>> from sparseopt import condense
        >>> model = torch.nn.Linear(64, 64)
        >>> condensed = condense(
        ...     model, "nonzero", example_inputs=torch.randn(1, 64), rounds=1, compiled=False)
        >>> condensed.report.precision
        'float32'
    """

    model: nn.Module
    report: CondensationReport


def condense(
    model: nn.Module,
    masks: Masks,
    *inputs: Any,
    example_inputs: Any = None,
    precision: Precision = "same",
    scripted: bool = True,
    compiled: bool = True,
    rounds: int = 7,
) -> Any:
    """Return a copy of a model for inference that is as fast as this machine allows.

    Convolutions and linear layers compute with live weights only, by kernels for CPUs, wherever
    that is measured to be faster. BatchNorm is folded into weights and biases; ReLU and additions
    of residuals are computed by the kernels; maps stay in the kernels' layout from layer to layer.

    The whole is timed on the example inputs, with the threads of this moment, beside every dense
    way: as it is, channels-last, folded (by oneDNN), frozen TorchScript, and frozen
    ``torch.compile``. What is fastest beyond the spread of the measurement is handed over, if it
    computes the same: so the copy is never slower than the fastest dense way. All of them are
    timed in bfloat16, too, and the report says first if one of those is faster.

    Args:
        model: the model; it is left alone.
        masks: which weights are live: the optimizer that trains them, bool tensors by name, or
            ``"nonzero"`` for a model that somebody else pruned.
        inputs: the spelling of 0.1.0 for example inputs, deprecated.
        example_inputs: inputs like those of inference: a tensor, a tuple of positional inputs, or
            a dict of keyword inputs. What is fastest depends on the batch. By default numbers in
            the shapes of the first training step.
        precision: ``"same"`` keeps the number format. ``"fastest"`` also hands over a model that
            computes in bfloat16; it takes and returns what the model did.
        scripted: whether frozen TorchScript is tried. Like a compiled one, such a program can't be
            pickled, exported or loaded into, if it turns out to be the fastest.
        compiled: whether frozen ``torch.compile`` is tried, which takes up to minutes.
        rounds: measurements of each way of the whole model; quartiles count.

    Returns:
        :class:`Condensed`, with ``model`` and ``report``. (The deprecated spelling returns the
        model.)

    Raises:
        TypeError: if ``masks`` is none of these.
        ValueError: if no inputs are known, a mask does not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, condense
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.1)
        >>> x = torch.randn(1, 64)
        >>> condensed = condense(model, optimizer, example_inputs=x, rounds=1, compiled=False)
        >>> torch.allclose(condensed.model(x), model(x), atol=1e-5)
        True
    """
    check_count("rounds", rounds, minimum=1)
    if precision not in {"same", "fastest"}:
        raise ValueError(f"precision={precision!r} must be 'same' or 'fastest'.")
    if inputs:
        warnings.warn(
            "condense(model, optimizer, *inputs) is deprecated: call "
            "condense(model, optimizer, example_inputs=inputs).model.",
            DeprecationWarning,
            stacklevel=2,
        )
        # What 0.1.0 returned could be pickled.
        example_inputs, scripted, compiled = inputs, False, False
    model = unwrapped(model)
    args, kwargs = _arguments(example_inputs, masks)
    ways = {"scripted": scripted, "compiled": compiled}
    work = _Condensing(model, masks_by_name(model, masks), args, kwargs, ways)
    with torch.no_grad():
        condensed = work.run(precision, rounds)
    return condensed.model if inputs else condensed


class Condensation:
    """The spelling of 0.1.0, deprecated: use :func:`condense`, which returns the same.

    Args:
        model: the model.
        optimizer: has the masks.
        inputs: positional inputs like those of inference.
        rounds: measurements of each way.

    Attributes:
        model: the copy for inference.
        report: the times of each layer that has a mask.
    """

    def __init__(
        self, model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, rounds: int = 7
    ) -> None:
        warnings.warn(
            "Condensation(model, optimizer, *inputs) is deprecated: call "
            "condense(model, optimizer, example_inputs=inputs).",
            DeprecationWarning,
            stacklevel=2,
        )
        if not inputs:
            raise ValueError("Condensation needs inputs to time the layers with: pass a batch.")
        condensed = condense(
            model, optimizer, example_inputs=inputs, rounds=rounds, scripted=False, compiled=False
        )
        self.model: nn.Module = condensed.model
        self.report: list[LayerTimes] = condensed.report.layers


def _arguments(example_inputs: Any, masks: Masks) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword inputs."""
    if example_inputs is None:
        known = masks.example_inputs() if isinstance(masks, SparseOptimizer) else None
        if known is None:
            raise ValueError(
                "example_inputs=None: condense() needs inputs to time the model with. Pass a "
                "batch, or call it with an optimizer that was given the model and has trained."
            )
        numbers: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(_random_numbers, known)
        return numbers
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _random_numbers(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    noise = normal(value.shape, torch.Generator().manual_seed(0))
    return noise.to(value.device, value.dtype)


@dataclass
class _Format:
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


class _Condensing:
    """The work of :func:`condense`, step by step."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        programs: Mapping[str, bool],
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

    def run(self, precision: Precision, rounds: int) -> Condensed:
        self.expected = self._outputs(self.model)
        # The user's own hooks run in the dense ways, and in none of the simplified ones.
        copied = copy_without_hooks(self.model).eval()
        self.copied = copied
        self.network, untraced = take_apart(copied, *self._inputs())
        formats = [self._ways_in(self.dtype, None)]
        if self.dtype == torch.float32 and _has_bfloat16(self.device):
            formats.append(self._ways_in(torch.bfloat16, torch.bfloat16))
        times = self._time(formats, rounds)
        winners = [_winner(one, times) for one in formats]
        chosen = 0
        if precision == "fastest" and len(formats) == 2:
            keys = [f"{way}, {one.name}" for way, one in zip(winners, formats, strict=True)]
            chosen = int(times[keys[1]].over(times[keys[0]]).q3 < 1)
        form, way = formats[chosen], winners[chosen]
        failed = {f"{name}, {one.name}": why for one in formats for name, why in one.failed.items()}
        if untraced is not None:
            failed["folding"] = f"the model can't be traced ({untraced})"
        layers = form.layers.get(way)
        if layers is None:
            layers = [_left_dense(one) for one in form.layers[_SPARSE]]
        return Condensed(
            form.ways[way].eval(), CondensationReport(way, form.name, times, layers, failed)
        )

    def _ways_in(self, dtype: torch.dtype, other: torch.dtype | None) -> _Format:
        """Return all ways; ``other`` is the number format that the model is converted to."""
        name = str(dtype).removeprefix("torch.")
        ways, failed = dense_ways(self.copied, *self._inputs(), other, **self.programs)
        for way in list(ways):
            fault = None if way == AS_IT_IS else self._fault(ways[way], dtype)
            if fault is not None:
                del ways[way]
                failed[way] = fault
        form = _Format(name, ways, failed, {})
        self._add_networks(form, dtype, other)
        return form

    def _add_networks(self, form: _Format, dtype: torch.dtype, other: torch.dtype | None) -> None:
        """Add the ways that exchange layers: dense, and sparse."""
        candidates, obstacles = candidates_for(self.network, self.masks, dtype)
        dense = {one.site.name: "dense" for one in candidates}
        self._add(form, _FOLDED, candidates, dense, other)
        plans = {_SPARSE: dense}
        if any(one.density < 1 and len(one.layers) > 1 for one in candidates):
            plans[_SPARSE] = choose_layers(candidates, self.device)
            everywhere = {one.site.name: _least_dense(one) for one in candidates}
            if everywhere != plans[_SPARSE]:
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
        form: _Format,
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
        return built if other is None else Prepared(built, other)

    def _time(self, formats: list[_Format], rounds: int) -> dict[str, Timing]:
        calls = {
            f"{way}, {form.name}": self._call(module)
            for form in formats
            for way, module in form.ways.items()
        }
        return time_in_turn(
            calls,
            rounds=rounds,
            device=self.device,
            warmup=_WARMUP,
            shortest=_LONG_ENOUGH,
            clock=clock_of(self.device),
        )

    def _call(self, module: nn.Module) -> Any:
        args, kwargs = self._inputs()
        return lambda: module(*args, **kwargs)

    def _inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a copy of the inputs, which a model may write to."""
        copied: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            Tensor, Tensor.clone, (self.args, dict(self.kwargs))
        )
        return copied

    def _outputs(self, model: nn.Module) -> Any:
        args, kwargs = self._inputs()
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


def _has_bfloat16(device: torch.device) -> bool:
    if torch.is_autocast_enabled(device.type):
        return False
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _winner(form: _Format, times: Mapping[str, Timing]) -> str:
    """Return the fastest way: another than the one before only beyond the spread."""
    sparse = [way for way in form.ways if way in form.layers]
    dense = [way for way in form.ways if way not in form.layers]
    of = {way: times[f"{way}, {form.name}"] for way in form.ways}
    best = _faster(of, dense, AS_IT_IS)
    return _faster(of, sparse, best)


def _faster(times: Mapping[str, Timing], ways: list[str], base: str) -> str:
    """Return the fastest of the ways if it takes less time than ``base`` in 3 of 4 rounds."""
    best = min([*ways, base], key=lambda way: times[way].median)
    return best if times[best].over(times[base]).q3 < 1 else base


def _least_dense(one: Candidates) -> str:
    """Return the way that reads the fewest weights."""
    return next((way for way in one.layers if way != "dense"), "dense")


def _layer_times(one: Candidates, chosen: str, obstacle: str | None) -> LayerTimes:
    shape = "x".join(map(str, one.inputs[0].shape)) if one.inputs else "not called"
    return LayerTimes(one.site.name, one.density, shape, one.seconds, chosen, obstacle)


def _left_dense(times: LayerTimes) -> LayerTimes:
    reason = times.obstacle or "the whole model is faster without"
    return LayerTimes(times.name, times.density, times.shape, times.seconds, "dense", reason)
