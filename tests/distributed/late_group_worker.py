"""A rank that makes its optimizer before there is a process group."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.nets import loss_of, make

SETTINGS = {"method": "set", "density": 0.2, "total_steps": 16, "delta_t": 2}


def run(folder: Path, seed: int | None) -> dict:
    """Train for some steps; return the error, or the masks."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(100 + rank)
    model = make()
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, seed=seed, **SETTINGS)
    store = (folder / f"store-{seed}").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parallel = DistributedDataParallel(model)
    try:
        for t in range(1, 6):
            optimizer.zero_grad()
            loss_of(parallel, 10 * t + rank).backward()
            optimizer.step()
    except RuntimeError as error:
        return {"error": str(error), "steps": optimizer.steps}
    else:
        return {"masks": optimizer.masks, "updates": len(optimizer.history)}
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    seen = {"unseeded": run(folder, None), "seeded": run(folder, 7)}
    torch.save(seen, folder / f"late-{os.environ['RANK']}.pt")
