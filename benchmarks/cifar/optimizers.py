"""The optimizer and the learning-rate schedule of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import INITS, method_with, recipe_of
from sparseopt import ChannelGroup, RigLStruct, SparseOptimizer


def build_optimizer(
    model: nn.Module,
    protocol: Protocol,
    spec: RunSpec,
    total_steps: int,
    masks: Mapping[str, Tensor] | None = None,
    groups: Sequence[ChannelGroup] = (),
) -> Optimizer:
    """SGD, wrapped by ``SparseOptimizer`` if the run's method is a sparse one."""
    config, sparsity = protocol.optimizer, protocol.sparsity
    inner = torch.optim.SGD(
        parameter_groups(model, config.weight_decay),
        lr=peak_lr(protocol, spec),
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    if recipe_of(spec.method).optimizer is None:
        return inner
    assert spec.density is not None
    assert spec.init is not None
    settings = dict(spec.settings)
    by_groups = RigLStruct(groups=groups, **settings) if by_channel(spec) else None
    return SparseOptimizer(
        inner,
        model,
        method=by_groups or method_with(spec.method, settings),
        density=spec.density,
        init=INITS[spec.init],
        mask="random" if masks is None else masks,
        total_steps=total_steps,
        t_end=int(sparsity.t_end_fraction * total_steps),
        delta_t=sparsity.delta_t if spec.delta_t is None else spec.delta_t,
        alpha=sparsity.alpha if spec.alpha is None else spec.alpha,
        seed=spec.seed,
    )


def by_channel(spec: RunSpec) -> bool:
    """Whether the run's method has to be told the network's channels."""
    return recipe_of(spec.method).optimizer == RigLStruct.name


def peak_lr(protocol: Protocol, spec: RunSpec) -> float:
    """The run's largest learning rate."""
    return protocol.optimizer.lr if spec.lr is None else spec.lr


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weights, which decay, and parameters of one dimension, which do not."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def build_scheduler(
    optimizer: Optimizer, protocol: Protocol, spec: RunSpec, total_steps: int
) -> LRScheduler:
    """The learning-rate schedule, to be stepped once after every training step."""
    config = protocol.schedule
    if config.kind == "one-cycle":
        assert config.warmup_fraction is not None
        return OneCycleLR(
            optimizer,
            max_lr=peak_lr(protocol, spec),
            total_steps=total_steps,
            pct_start=config.warmup_fraction,
            cycle_momentum=False,
        )
    assert config.step_size is not None
    assert config.gamma is not None
    warmup = config.warmup_steps
    if spec.method == "pruning":
        warmup = max(warmup, config.pruning_warmup_steps)
    step_size = config.step_size * recipe_of(spec.method).length
    return LambdaLR(optimizer, StepFactor(warmup, step_size, config.gamma))


class StepFactor:
    """Learning-rate factor: a linear rise, then times ``gamma`` after every interval.

    Args:
        warmup: Steps until the full learning rate; 0 starts with it.
        step_size: Steps between two reductions, counted after the warm-up.
        gamma: Factor of each reduction.

    Example:
        >>> factor = StepFactor(warmup=0, step_size=30_000, gamma=0.2)
        >>> factor(29_999), factor(30_000)
        (1.0, 0.2)
    """

    def __init__(self, warmup: int, step_size: int, gamma: float) -> None:
        self.warmup = warmup
        self.step_size = step_size
        self.gamma = gamma

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.gamma ** ((step - self.warmup) // self.step_size)
