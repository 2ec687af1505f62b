"""Parameters, FLOPs and mask updates of a finished run.

FLOPs are counted as in the report's supplement, section 2: convolutions and linear layers, per
image. A dense training step costs three inferences.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.models.networks import build_model
from benchmarks.cifar.running.training import Run
from sparseopt import FlopsReport, SparseLayer, SparseOptimizer


def count(run: Run) -> dict[str, Any]:
    """What the results file says about a run's costs, in plain numbers.

    Returns:
        ``parameters`` (total and live), ``flops`` (per image; those of the full dense network
        beside the run's own), and None for the dense methods: ``updates`` (in all), ``layers``
        (what is and what ever was live in each) and ``history`` (one entry an update).
    """
    image = next(iter(run.splits.test.in_order(1)))[0]
    total = sum(parameter.numel() for parameter in run.model.parameters())
    if isinstance(run.optimizer, SparseOptimizer):
        report = run.optimizer.flops(run.model, image)
        dropped = sum(layer.numel - layer.live for layer in run.optimizer.layers)
        masks = {
            "updates": _updates(run.optimizer),
            "layers": _layers(run.optimizer),
            "history": [dataclasses.asdict(record) for record in run.optimizer.history],
        }
    else:
        report, dropped = dense_flops(run.model, image), 0
        masks = {"updates": None, "layers": None, "history": None}
    full = report
    if run.spec.method == "small-dense":
        dense = dataclasses.replace(run.spec, method="dense", density=None)
        full_model = build_model(run.protocol, dense, run.splits.num_classes)
        full = dense_flops(full_model.to(run.splits.device), image)
    return {
        "parameters": {"total": total, "live": total - dropped},
        "flops": {
            "inference": report.inference_sparse,
            "train": report.train_sparse,
            "train_measured": report.train_measured,
            "dense_inference": full.inference_dense,
            "dense_train": full.train_dense,
        },
        **masks,
    }


def dense_flops(model: nn.Module, image: Tensor) -> FlopsReport:
    """The FLOPs of a model without masks.

    Args:
        model: Any model; left as it is.
        image: A batch of one image.
    """
    # Nothing is dropped at density 1: the wrapper only counts, and is taken off again.
    counter = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), model, method="static", density=1.0
    )
    try:
        return counter.flops(model, image)
    finally:
        counter.detach()


def _updates(optimizer: SparseOptimizer) -> dict[str, Any]:
    made = [record for record in optimizer.history if not record.skipped]
    return {
        "count": len(made),
        "skipped": len(optimizer.history) - len(made),
        "explored": made[-1].explored if made else optimizer.density,
    }


def _layers(optimizer: SparseOptimizer) -> list[dict[str, Any]]:
    ever_live = SparseLayer.ever_live_counts(optimizer.layers)
    return [
        {"name": layer.name, "numel": layer.numel, "live": layer.live, "ever_live": count}
        for layer, count in zip(optimizer.layers, ever_live, strict=True)
    ]
