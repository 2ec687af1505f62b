"""The models whose optimizer steps are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.cifar.models import WideResNet


@dataclass(frozen=True)
class Workload:
    """A model, and what a whole training step of it needs.

    Attributes:
        title: Its name in the report.
        build: Makes the model; a tiny one of the same kind if its argument is true.
        sample_shape: Shape of one input without the batch, or None if the model is weights only.
        classes: Number of classes of its output, if it has one.
    """

    title: str
    build: Callable[[bool], nn.Module]
    sample_shape: tuple[int, ...] | None = None
    classes: int = 0


def transformer_linears(width: int, blocks: int) -> nn.Module:
    """The linear weights of a GPT-like transformer, without anything that connects them.

    Example:
        >>> sum(p.numel() for p in transformer_linears(width=512, blocks=8).parameters())
        25165824
    """
    return nn.ModuleList(
        nn.ModuleDict(
            {
                "qkv": nn.Linear(width, 3 * width, bias=False),
                "proj": nn.Linear(width, width, bias=False),
                "mlp_in": nn.Linear(width, 4 * width, bias=False),
                "mlp_out": nn.Linear(4 * width, width, bias=False),
            }
        )
        for _ in range(blocks)
    )


def _build_linears(quick: bool) -> nn.Module:
    return transformer_linears(width=128, blocks=1) if quick else transformer_linears(512, 8)


def _build_wrn(quick: bool) -> nn.Module:
    return WideResNet(depth=10, width=1) if quick else WideResNet(depth=22, width=2)


WORKLOADS = {
    "wrn-22-2": Workload("WRN-22-2", _build_wrn, sample_shape=(3, 32, 32), classes=10),
    "linears-25m": Workload("Linear weights of a GPT-like transformer", _build_linears),
}
