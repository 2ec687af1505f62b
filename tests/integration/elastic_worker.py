"""One rank of a data-parallel run under torchrun, of which a rank is killed in mid-run."""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.integration.kill_worker import save
from tests.support.catalogue import build
from tests.support.looking import per_weight_state
from tests.support.nets import loss_of, make

STEPS, SAVE_EVERY, KILLED_AT = 24, 5, 13
RUNS = {"set": "AdamW", "rigl": "SGD", "pruning": "AdamW"}
SETTINGS = {"density": 0.2, "total_steps": STEPS, "delta_t": 3}


class Training:
    """A run of each method, side by side, with every rank's own seed, weights and data."""

    def __init__(self, seed: int):
        self.rank = dist.get_rank()
        torch.manual_seed(seed)
        self.models = {method: make(seed=seed) for method in RUNS}
        self.parallel = {
            method: DistributedDataParallel(model) for method, model in self.models.items()
        }
        self.optimizers = {
            method: SparseOptimizer(
                build(name, self.parallel[method].parameters()),
                self.parallel[method],
                method=method,
                **SETTINGS,
            )
            for method, name in RUNS.items()
        }
        self.step = 0

    def backward(self, method: str) -> None:
        self.optimizers[method].zero_grad()
        loss_of(self.parallel[method], 1000 * self.rank + self.step).backward()

    def checkpoint(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "models": {method: model.state_dict() for method, model in self.parallel.items()},
            "optimizers": {
                method: optimizer.state_dict() for method, optimizer in self.optimizers.items()
            },
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.step = saved["step"]
        for method in RUNS:
            self.parallel[method].load_state_dict(saved["models"][method])
            self.optimizers[method].load_state_dict(saved["optimizers"][method])

    def masks(self) -> dict[str, torch.Tensor]:
        return {
            f"{method} {name}": mask.clone()
            for method, optimizer in self.optimizers.items()
            for name, mask in optimizer.masks.items()
        }

    def outcome(self) -> dict[str, Any]:
        return {
            "weights": {
                f"{method} {name}": p.detach()
                for method, model in self.models.items()
                for name, p in model.named_parameters()
            },
            "masks": self.masks(),
            "state": {
                f"{method} {layer.name} {key}": torch.from_numpy(value)
                for method, optimizer in self.optimizers.items()
                for layer in optimizer.layers
                for key, value in per_weight_state(optimizer, layer.weight, layer.mask).items()
            },
            "history": {
                method: [vars(record) for record in optimizer.history]
                for method, optimizer in self.optimizers.items()
            },
            "steps": {method: optimizer.steps for method, optimizer in self.optimizers.items()},
        }


def train(folder: Path, *, seed: int, dies: bool) -> None:
    """Resume from the checkpoint in the folder, if there is one, and train to the last step.

    Args:
        folder: Where the checkpoint is, and what each rank saw.
        seed: Of this rank.
        dies: Whether rank 1 kills itself once, half-way through a step.
    """
    folder.mkdir(exist_ok=True)
    training, checkpoint = Training(seed), folder / "checkpoint.pt"
    if checkpoint.exists():
        training.load(torch.load(checkpoint))
    # No rank may save before every rank has loaded.
    dist.barrier()
    seen: dict[str, Any] = {"begun": training.step, "masks": {training.step: training.masks()}}
    while training.step < STEPS:
        training.step += 1
        for method, optimizer in training.optimizers.items():
            training.backward(method)
            if dies and training.step == KILLED_AT and training.rank == 1:
                kill_once(folder / "killed")
            optimizer.step()
        seen["masks"][training.step] = training.masks()
        if training.step % SAVE_EVERY == 0 and training.rank == 0:
            save(training.checkpoint(), checkpoint)
    seen["outcome"] = training.outcome()
    save(seen, folder / f"rank-{training.rank}.pt")


def kill_once(flag: Path) -> None:
    """Die as from lack of memory, unless a rank died already."""
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, restarts = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts == 0:
        train(folder / "uninterrupted", seed=rank, dies=False)
    # After a restart seeds and initial weights differ, so the checkpoint has to restore everything.
    train(folder / "broken", seed=rank + 10 * restarts, dies=True)
    save({"restarts": restarts}, folder / f"restarts-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
