"""``condense``: each linear layer in the form that is fastest on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.equivalence import disagreement
from sparseopt.speedup.linear_implementations import (
    dense_implementations,
    median_seconds,
    sparse_implementations,
    type_name,
)
from sparseopt.utils.hooks import copy_without_hooks
from sparseopt.utils.probe import preserve_model_state
from sparseopt.utils.validation import check_count
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["Condensation", "LayerTimes", "condense"]

#: Modules of torch that read the weights of linear layers that they also call: which of both they
#: do depends on the input. ``MultiheadAttention`` only reads, so its layer is never seen here.
READERS: Final = (nn.TransformerEncoderLayer,)


@dataclass(frozen=True)
class LayerTimes:
    """What one linear layer takes, in every way.

    Attributes:
        name: path of the module.
        density: live weights over all weights.
        rows: vectors that the layer was given at once.
        dense: seconds by dense way: ``"F.linear float32"``, ``"F.linear bfloat16"``,
            ``"oneDNN packed float32"``, ``"oneDNN packed bfloat16"``; those that this machine has.
        sparse: seconds by sparse way: ``"condensed"`` (constant fan-in only), ``"CSR"``; those that
            this machine has in the layer's precision, which may be none.
        obstacle: why the layer stays dense whatever is faster, or ``None``.

    Example:
        >>> from sparseopt import LayerTimes
        >>> times = LayerTimes("fc", 0.1, 1, dense={"F.linear float32": 2e-5}, sparse={"CSR": 1e-5})
        >>> times.speed_up, times.chosen
        (2.0, 'CSR')
    """

    name: str
    density: float
    rows: int
    dense: Mapping[str, float]
    sparse: Mapping[str, float]
    obstacle: str | None = None

    @property
    def fastest_dense(self) -> str:
        """The fastest dense way on this machine."""
        return min(self.dense, key=self.dense.__getitem__)

    @property
    def fastest_sparse(self) -> str | None:
        """The fastest sparse way on this machine, or ``None`` if it has none."""
        return min(self.sparse, key=self.sparse.__getitem__, default=None)

    @property
    def speed_up(self) -> float:
        """Time of the fastest dense way over that of the fastest sparse way; may be below 1.

        0 if there is no sparse way.
        """
        way = self.fastest_sparse
        return 0.0 if way is None else self.dense[self.fastest_dense] / self.sparse[way]

    @property
    def chosen(self) -> str:
        """The fastest sparse way if it beats every dense way and nothing prevents it.

        Else ``"dense"``.
        """
        way = self.fastest_sparse
        return "dense" if way is None or self.speed_up <= 1 or self.obstacle is not None else way

    def __str__(self) -> str:
        reason = "" if self.obstacle is None else f", since {self.obstacle}"
        start = f"{self.name}: density {self.density:.3g}, {self.rows} rows: {self.chosen}{reason}."
        dense = f"{self.fastest_dense} ({1e6 * self.dense[self.fastest_dense]:.1f} us)"
        way = self.fastest_sparse
        if way is None:
            return f"{start} The fastest dense way is {dense}"
        return (
            f"{start} {way} {1e6 * self.sparse[way]:.1f} us, "
            f"{self.speed_up:.2f} x the speed of the fastest dense way, {dense}"
        )


def condense(
    model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, rounds: int = 15
) -> nn.Module:
    """Return a copy for inference whose linear layers are sparse where that is faster here.

    See :class:`Condensation`, of which this is the model.

    Args:
        model: the model, with the weights that ``optimizer`` trains.
        optimizer: has the masks.
        inputs: positional inputs like those of inference: what is fastest depends on the batch.
        rounds: measurements of each way; their median counts.

    Returns:
        A copy in evaluation mode.

    Raises:
        ValueError: if no inputs are given, or ``rounds`` is not positive.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, condense
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.1)
        >>> x = torch.randn(1, 64)
        >>> condensed = condense(model, optimizer, x, rounds=1)
        >>> torch.allclose(condensed(x), model(x), atol=1e-5)
        True
    """
    return Condensation(model, optimizer, *inputs, rounds=rounds).model


class Condensation:
    """A copy of a model for inference, with linear layers that skip what masks dropped.

    Each linear layer is timed as it is used for ``inputs``, on this machine with the number of
    threads of this moment: dense in all the ways there are, in compressed sparse rows, and, if its
    fan-in is constant, condensed. It becomes sparse if that is faster than *every* dense way,
    bfloat16 among them; else it stays as it is. Convolutions stay as they are: whole channels of
    them are taken out by :class:`sparseopt.Compaction`, whose masks a smaller model can then be
    condensed with.

    The copy is run on ``inputs`` once, and compared with the model. A layer stays dense if the copy
    would not run or not compute the same with a sparse one, because code outside the layer reads
    its weight, say. So do the feed-forward layers of torch's ``TransformerEncoderLayer``, which
    reads their weights for some inputs.

    Args:
        model: the model, with the weights that ``optimizer`` trains.
        optimizer: has the masks.
        inputs: positional inputs like those of inference: what is fastest depends on the batch.
        rounds: measurements of each way; their median counts.

    Attributes:
        model: the copy, in evaluation mode.
        report: the times of each linear layer that has a mask, in the model's order
            (:class:`LayerTimes`).

    Raises:
        ValueError: if no inputs are given, or ``rounds`` is not positive.

    Example:
        >>> import torch
        >>> from sparseopt import Condensation, SparseOptimizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.1)
        >>> condensation = Condensation(model, optimizer, torch.randn(1, 64), rounds=1)
        >>> [times.name for times in condensation.report]
        ['0', '2']
    """

    def __init__(
        self, model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, rounds: int = 15
    ) -> None:
        check_count("rounds", rounds, minimum=1)
        if not inputs:
            raise ValueError("condense() needs inputs to time the layers with: pass a batch.")
        model = unwrapped(model)
        optimizer.materialize()
        masks = _masks_by_layer(model, optimizer)
        seen = _inputs_of(model, list(masks), inputs)
        self.model: nn.Module = copy_without_hooks(model).eval()
        self.report: list[LayerTimes] = []
        faster: dict[str, nn.Module] = {}
        for name, x in seen.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            modules = sparse_implementations(layer, masks[name], x)
            times = _times(name, layer, masks[name], x, modules, rounds, _obstacle(model, name))
            self.report.append(times)
            if times.chosen != "dense":
                faster[name] = modules[times.chosen]
        if faster:
            self._replace(faster, inputs)

    def _replace(self, faster: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> None:
        """Put in all that is faster; if something is wrong then, one by one what can be."""
        expected = _outputs(self.model, inputs)
        dense = {name: self.model.get_submodule(name) for name in faster}
        for name in faster:
            self._put(name, faster[name])
        if self._fault(expected, inputs) is None:
            return
        for name in faster:
            self._put(name, dense[name])
        for place, times in enumerate(self.report):
            if times.name not in faster:
                continue
            self._put(times.name, faster[times.name])
            fault = self._fault(expected, inputs)
            if fault is not None:
                self._put(times.name, dense[times.name])
                self.report[place] = replace(times, obstacle=f"with {times.chosen} {fault}")

    def _put(self, name: str, layer: nn.Module) -> None:
        if not name:
            self.model = layer.eval()
            return
        path, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(path), last, layer.eval())

    def _fault(self, expected: Any, inputs: tuple[Any, ...]) -> str | None:
        """Return what is wrong with the copy, or ``None``."""
        try:
            found = _outputs(self.model, inputs)
        # Whatever the model's code makes of a layer that is none of torch's.
        except Exception as error:
            return f"the model does not run ({type(error).__name__}: {error})"
        difference = disagreement(expected, found)
        return None if difference is None else f"the model's output {difference}"


def _times(
    name: str,
    layer: nn.Linear,
    mask: Tensor,
    x: Tensor,
    modules: Mapping[str, nn.Module],
    rounds: int,
    obstacle: str | None,
) -> LayerTimes:
    dense = dense_implementations(layer, x)
    sparse = {way: _call(module, x) for way, module in modules.items()}
    seconds = median_seconds({**dense, **sparse}, rounds, x.device)
    if not sparse and obstacle is None:
        obstacle = f"there is no sparse product in {type_name(layer.weight.dtype)} on this device"
    return LayerTimes(
        name,
        mask.sum().item() / mask.numel(),
        x.numel() // x.shape[-1],
        {way: seconds[way] for way in dense},
        {way: seconds[way] for way in sparse},
        obstacle,
    )


def _obstacle(model: nn.Module, name: str) -> str | None:
    owner = model.get_submodule(name.rpartition(".")[0])
    return f"{type(owner).__name__} reads its weight" if isinstance(owner, READERS) else None


def _call(module: nn.Module, x: Tensor) -> Any:
    return lambda: module(x)


def _masks_by_layer(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Tensor]:
    """Return the masks of linear layers that have dropped weights, by path of the module."""
    masks = optimizer.masks
    found = {}
    for path, module in model.named_modules():
        mask = masks.get(canonical_name(f"{path}.weight" if path else "weight"))
        # Subclasses may do something else with their weight.
        if type(module) is nn.Linear and mask is not None and not bool(mask.all()):
            found[path] = mask
    return found


def _inputs_of(model: nn.Module, paths: list[str], inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return what each of the layers is given in one forward pass, the last time it is called."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(_keep(seen, path), with_kwargs=True)
        for path in paths
    ]
    try:
        _outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: seen[path] for path in paths if path in seen}


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Return what the model computes in evaluation mode; of the inputs, copies are used up."""
    with preserve_model_state(model), torch.no_grad():
        return model.eval()(*tree_map_only(Tensor, Tensor.clone, inputs))


def _keep(seen: dict[str, Tensor], path: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = args[0] if args else named["input"]
        seen[path] = x.detach().clone()

    return hook
