"""Trains with the tutorial's second method; if it is killed and started again, it resumes.

``python -m tests.docs.own_method_worker FOLDER [KILLED_AT_STEP]``
"""

import ast
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.processes import ROOT

TUTORIAL = ROOT / "docs" / "tutorials" / "your_own_method.py"
METHOD = "smoothed-salience"
STEPS, SAVED_EVERY = 40, 5


def register_methods_of_the_tutorial() -> None:
    """Run the tutorial's imports and classes, and nothing else of it."""
    tree = ast.parse(TUTORIAL.read_text(encoding="utf-8"))
    wanted = (ast.Import, ast.ImportFrom, ast.ClassDef)
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, wanted) and "sklearn" not in ast.unparse(node)
    ]
    namespace = {"__name__": __name__}
    exec(compile(tree, TUTORIAL, "exec"), namespace)


def main(folder: Path, killed_at: int | None) -> None:
    register_methods_of_the_tutorial()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = SparseOptimizer(
        inner, model, method=METHOD, density=0.2, total_steps=STEPS, delta_t=4
    )
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(optimizer.steps + 1, STEPS + 1):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        (model(torch.randn(8, 16, generator=generator)) - 1).square().mean().backward()
        optimizer.step()
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % SAVED_EVERY == 0:
            beside = checkpoint.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, beside)
            beside.replace(checkpoint)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
