"""One rank of a run with DDP: ``torchrun --nproc-per-node 2 data_parallel.py``"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer

STEPS, BATCH = 60, 32

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(rank)  # without DDP and the wrapper, ranks would differ in weights and masks

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1)[rank::ranks] / 16
labels = torch.tensor(digits.target)[rank::ranks]

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
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

for mask in optimizer.masks.values():
    masks = [torch.empty_like(mask) for _ in range(ranks)]
    dist.all_gather(masks, mask)
    assert all(torch.equal(mask, other) for other in masks)
if rank == 0:
    print(f"after {len(optimizer.history)} updates {ranks} ranks have the same masks")
    print(optimizer.summary())
dist.destroy_process_group()
