"""The network that a run left, in the form in which it is fastest and computes the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import IMAGE_SIZE
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import INITS, recipe_of
from benchmarks.cifar.models import build_model
from benchmarks.cifar.structure import Structure, masked_by
from sparseopt import Compaction, Condensation, SparseOptimizer

DENSE, ZEROS, COMPACTED = "dense", "dense tensors with zeros", "compacted"


@dataclass(frozen=True)
class Form:
    """A network for inference."""

    kind: str
    model: nn.Module
    about: dict[str, Any]
    masks: dict[str, Tensor] = field(default_factory=dict)

    def condensed(self, images: Tensor) -> tuple[nn.Module, list[str]] | None:
        """A copy whose linear layers skip what is dropped, where that is faster for these images.

        Returns:
            The copy, and the form of each layer that is sparse in it; None where none is.
        """
        if not self.masks:
            return None
        optimizer = masked_by(self.model, self.masks)
        try:
            condensation = Condensation(self.model, optimizer, images)
        finally:
            optimizer.detach()
        ways = [f"{one.name}: {one.chosen}" for one in condensation.report if one.chosen != DENSE]
        return (condensation.model, ways) if ways else None


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
    masks = {name: mask.to(device) for name, mask in compaction.masks.items() if mask.dim() > 1}
    return Form(COMPACTED, smaller, about, masks)


def _sizes(model: nn.Module) -> dict[str, Any]:
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}
