"""The network that a run left, in the form in which it is fastest and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import IMAGE_SIZE
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import INITS, recipe_of
from benchmarks.cifar.models import build_model
from benchmarks.cifar.structure import Structure
from sparseopt import Compaction, SparseOptimizer

DENSE, ZEROS, COMPACTED = "dense", "dense tensors with zeros", "compacted"


class Form(NamedTuple):
    """A network for inference: what was done to it, it, and what is worth knowing, in numbers."""

    kind: str
    model: nn.Module
    about: dict[str, Any]


def form_of(
    protocol: Protocol,
    spec: RunSpec,
    classes: int,
    device: torch.device,
    structure: Path | None = None,
) -> Form:
    """The network that a run left.

    Its weights are drawn anew, as time does not depend on their values. Masks that cannot be made
    use of are drawn anew too: all that remains of them is zeros.
    """
    torch.manual_seed(spec.seed)
    model = build_model(protocol, spec, classes).to(device).eval()
    recipe = recipe_of(spec.method)
    if recipe.leaves_structure:
        assert structure is not None
        return _compacted(model, Structure.load(structure), device)
    if recipe.optimizer is None:
        return Form(DENSE, model, _sizes(model))
    assert spec.init is not None
    assert spec.density is not None
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    SparseOptimizer(
        inner, model, method="static", init=INITS[spec.init], density=spec.density, seed=spec.seed
    ).detach()
    return Form(ZEROS, model, _sizes(model))


def _compacted(model: nn.Module, structure: Structure, device: torch.device) -> Form:
    optimizer = structure.put_into(model)
    try:
        # Enough images for BatchNorm.
        images = torch.zeros(4, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
        compaction = Compaction(model, optimizer, images)
    finally:
        optimizer.detach()
    report = compaction.report
    smaller = compaction.model.eval()
    about = {
        **_sizes(smaller),
        "flops_ratio": report.flops_ratio,
        "share_reached": report.share_reached,
        "reasons": sorted({one.reason for one in report.remaining}),
    }
    return Form(COMPACTED, smaller, about)


def _sizes(model: nn.Module) -> dict[str, Any]:
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}
