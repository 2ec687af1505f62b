"""The runs whose checkpoints are kept: small networks, three methods and one for channels.

``python -m tests.optimizer.checkpoints_0_1_0.runs`` wrote the files beside this one with version
0.1.0. A later version must read these files, so do not write them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparseopt
from sparseopt import RigLStruct, SparseOptimizer, find_channel_groups

FOLDER = Path(__file__).parent
RUNS = [
    *(
        f"{optimizer}-{state}-{method}"
        for optimizer in ("sgd", "adamw")
        for state in ("compact", "masked")
        for method in ("rigl", "set", "pruning")
    ),
    "sgd-masked-rigl-struct",
]
#: The checkpoint is taken here, between two updates.
SAVED_AT = 10
TOTAL_STEPS = 24


class ConvNet(nn.Module):
    """A convolutional network whose middle channels can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv1(images)))
        return self.head(self.conv2(hidden).mean(dim=(2, 3)))


def build_model(run: str) -> nn.Module:
    """Return the network of a run, with weights that the checkpoint replaces."""
    if run.endswith("struct"):
        return ConvNet()
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def build_optimizer(run: str, model: nn.Module) -> SparseOptimizer:
    """Return the sparse optimizer of a run, made as 0.1.0 made it."""
    inner_name, state, method = run.split("-", 2)
    inner: torch.optim.Optimizer
    if inner_name == "sgd":
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    if method == "rigl-struct":
        groups = find_channel_groups(model, torch.zeros(2, 2, 6, 6))
        return SparseOptimizer(
            inner,
            model,
            method=RigLStruct(groups=groups),
            density=0.5,
            init={},
            alpha=0.6,
            total_steps=TOTAL_STEPS,
            delta_t=4,
            seed=5,
            state=state,
        )
    return SparseOptimizer(
        inner,
        model,
        method=method,
        density=0.3,
        total_steps=TOTAL_STEPS,
        delta_t=4,
        seed=5,
        state=state,
    )


def draw_batches(run: str) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of all steps; they are kept in the file, not drawn again."""
    shape = (8, 2, 6, 6) if run.endswith("struct") else (8, 12)
    return [(torch.randn(shape), torch.randint(3, (8,))) for _ in range(TOTAL_STEPS)]


def train(
    model: nn.Module, optimizer: SparseOptimizer, batches: list[tuple[Tensor, Tensor]]
) -> None:
    """Take one step with each batch."""
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def _write(run: str) -> None:
    torch.manual_seed(11)
    model = build_model(run)
    optimizer = build_optimizer(run, model)
    batches = draw_batches(run)
    train(model, optimizer, batches[:SAVED_AT])
    saved: dict[str, Any] = {
        "version": sparseopt.__version__,
        "model": _copied(model.state_dict()),
        "optimizer": _copied(optimizer.state_dict()),
        "batches": batches[SAVED_AT:],
    }
    train(model, optimizer, batches[SAVED_AT:])
    saved["model_at_end"] = _copied(model.state_dict())
    saved["masks_at_end"] = _copied(optimizer.masks)
    saved["history_at_end"] = [
        (record.step, record.dropped, record.grown) for record in optimizer.history
    ]
    torch.save(saved, FOLDER / f"{run}.pt")


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(entry) for entry in value)
    return value


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in RUNS:
        _write(name)
