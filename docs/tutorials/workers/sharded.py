"""One rank of a run with FSDP2: ``torchrun --nproc-per-node 2 sharded.py``"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sparseopt import SparseOptimizer

STEPS, BATCH = 60, 32

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (ranks,))

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1)[rank::ranks] / 16
labels = torch.tensor(digits.target)[rank::ranks]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
optimizer = SparseOptimizer(
    optimizer, model, method="rigl", density=0.1, total_steps=STEPS, delta_t=10
)
for step in range(STEPS):
    batch = torch.randint(len(images), (BATCH,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if step % 20 == 0 and rank == 0:
        print(f"step {step}: loss {loss:.3f} on the images of rank 0", flush=True)

mask = optimizer.masks["0.weight"]
mine = mask.to_local()
for speaker in range(ranks):
    if rank == speaker:
        print(f"rank {rank} holds {tuple(mine.shape)} of {tuple(mask.shape)}, {mine.sum()} live",
              flush=True)  # fmt: skip
    dist.barrier()
if rank == 0:
    print(optimizer.summary())
dist.destroy_process_group()
