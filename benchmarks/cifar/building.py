"""The model, the optimizer and the learning-rate schedule of one run."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.models import WideResNet, small_dense_scale
from benchmarks.cifar.protocol import Protocol
from benchmarks.cifar.runspec import RunSpec


def build_model(protocol: Protocol, spec: RunSpec, num_classes: int) -> WideResNet:
    """The run's network, with initial weights that depend on the global random state only."""
    scale = 1.0
    if spec.method == "small-dense":
        assert spec.density is not None
        scale = small_dense_scale(spec.density)
    config = protocol.model
    model = WideResNet(config.depth, config.width, config.dropout, num_classes, scale)
    return model.to(memory_format=_memory_format(protocol))


def build_optimizer(
    model: nn.Module, protocol: Protocol, spec: RunSpec, total_steps: int
) -> Optimizer:
    """SGD, wrapped by ``SparseOptimizer`` if the run's method is a sparse one."""
    config = protocol.optimizer
    recipe = RECIPES[spec.method]
    inner = torch.optim.SGD(
        parameter_groups(model, config.weight_decay),
        lr=config.lr if spec.lr is None else spec.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    if recipe.optimizer is None:
        return inner
    from sparseopt import SparseOptimizer

    assert spec.density is not None
    assert spec.init is not None
    return SparseOptimizer(
        inner,
        model,
        method=recipe.optimizer,
        density=spec.density,
        init=spec.init,
        total_steps=total_steps,
        t_end=int(protocol.sparsity.t_end_fraction * total_steps),
        delta_t=protocol.sparsity.delta_t if spec.delta_t is None else spec.delta_t,
        alpha=protocol.sparsity.alpha if spec.alpha is None else spec.alpha,
        seed=spec.seed,
    )


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
            max_lr=protocol.optimizer.lr if spec.lr is None else spec.lr,
            total_steps=total_steps,
            pct_start=config.warmup_fraction,
            cycle_momentum=False,
        )
    assert config.step_size is not None
    assert config.gamma is not None
    warmup = config.pruning_warmup_steps if spec.method == "pruning" else config.warmup_steps
    return LambdaLR(optimizer, StepFactor(warmup, config.step_size, config.gamma))


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


def _memory_format(protocol: Protocol) -> torch.memory_format:
    return torch.channels_last if protocol.training.channels_last else torch.contiguous_format
