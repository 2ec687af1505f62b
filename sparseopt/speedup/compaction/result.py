"""The result of ``compact``: the smaller model, its masks and a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparseopt.speedup.compaction.report import CompactionReport
from sparseopt.speedup.compaction.surgery import Kept
from sparseopt.utils.deprecation import warn_old_spelling

__all__ = ["Compacted"]


@dataclass(frozen=True, eq=False)
class Compacted:
    """The result of :func:`compact`: the smaller model, its masks and a report.

    In 0.1.0 :func:`compact` returned the model. So calls, indexing, and attributes that are not
    listed below are passed on to the model, with a ``DeprecationWarning``.

    Attributes:
        model: the smaller model: of the same class, with smaller layers.
        masks: the masks of the smaller model's weights, by name. Pass them as ``mask=`` to a new
            :class:`SparseOptimizer` of the smaller model, to train it further or to condense it.
        report: what was removed, what could not be removed, and why; it can be printed.
        kept: for each parameter and buffer that became smaller, by dimension the positions that
            stayed, ascending: ``{"conv1.weight": {0: tensor([0, 3, ...])}}``.

    Example:
        >>> import torch
        >>> from sparseopt import compact
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> with torch.no_grad():
        ...     model[0].weight[1] = 0
        >>> compacted = compact(model, "nonzero", example_inputs=torch.randn(2, 6))
        >>> compacted.model[0]
        Linear(in_features=6, out_features=3, bias=True)
        >>> compacted.kept["0.weight"][0].tolist(), tuple(compacted.masks["0.weight"].shape)
        ([0, 2, 3], (3, 6))
    """

    model: nn.Module
    masks: dict[str, Tensor] = field(repr=False)
    report: CompactionReport = field(repr=False)
    kept: Kept = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        # Copies and pickles look for special methods, before there is a model.
        if name.startswith("__") or not hasattr(vars(self).get("model"), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warn_old_spelling(f"compact(...).{name}", f"compact(...).model.{name}")
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; deprecated."""
        warn_old_spelling("compact(...)(inputs)", "compact(...).model(inputs)")
        return self.model(*args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        warn_old_spelling(f"compact(...)[{index!r}]", f"compact(...).model[{index!r}]")
        return self.model[index]  # type: ignore[index]
