"""One rank of FSDP2 runs: `python -m tests.distributed.fsdp_worker FOLDER JOB [JOB...]`.

A job is one of the functions at the end. What it returns is of whole tensors, and rank 0 saves it.
"""

import copy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._pytree import tree_map

from sparseopt import SparseOptimizer, load_sparse, save_sparse
from sparseopt.speedup.kernels.live_copies import find_live_copies
from tests.support.catalogue import build
from tests.support.nets import CLASSES, batch, make
from tests.support.own_methods import SmoothedSalience

STEPS, STOP = 16, 6
SETTINGS = {"density": 0.2, "total_steps": STEPS, "delta_t": 4}
RUNS = [
    ("static", "AdamW"),
    ("set", "SGD"),
    ("rigl", "SGD"),
    ("rigl", "AdamW"),
    ("rigl", "Adagrad"),
    ("rigl", "RMSprop"),
    ("pruning", "AdamW"),
    ("snfs", "AdamW"),
    ("rigl-sm", "SGD"),
    ("granet", "SGD"),
    ("mest", "SGD"),
    ("srigl", "AdamW"),
    (SmoothedSalience.name, "AdamW"),
]
CHECKPOINTED = [
    ("set", "SGD"),
    ("rigl", "AdamW"),
    ("pruning", "AdamW"),
    ("snfs", "AdamW"),
    (SmoothedSalience.name, "SGD"),
]
#: Divides evenly by 1, 2, 3 and 4 ranks.
SIZE = 12


class LargeNet(nn.Module):
    """Its first layer has enough weights for the kernels to copy the live ones."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(108, 48), nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def dense(*, seed: int = 0) -> nn.Module:
    """In double precision, so that another order of sums makes no other choice."""
    return make(seed=seed, dtype=torch.float64)


def shard(model: nn.Module, mesh: tuple[int, ...] | None = None) -> nn.Module:
    """Spread the small net, whose last layer has 5 rows; two numbers are replicas and shards."""
    mesh = mesh or (dist.get_world_size(),)
    device_mesh = init_device_mesh("cpu", mesh, mesh_dim_names=("replicas", "shards")[-len(mesh) :])
    for layer in (model.conv1, model.fc1):
        fully_shard(layer, mesh=device_mesh)
    return fully_shard(model, mesh=device_mesh)


def begin(model: nn.Module, method: str, name: str, **settings) -> SparseOptimizer:
    inner = build(name, model.parameters())
    return SparseOptimizer(inner, model, method=method, **{**SETTINGS, "seed": 3, **settings})


def my_loss(model: nn.Module, index: int) -> torch.Tensor:
    """On this rank's part of the batch: FSDP2 takes the mean over the ranks."""
    x, y = batch(index, size=SIZE, dtype=torch.float64)
    parts, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    return F.cross_entropy(model(x.chunk(parts)[rank]), y.chunk(parts)[rank])


def whole_loss(model: nn.Module, index: int) -> torch.Tensor:
    x, y = batch(index, size=SIZE, dtype=torch.float64)
    return F.cross_entropy(model(x), y)


def whole(values):
    """Copies of all tensors in `values`, DTensors brought together."""

    def together(value):
        if isinstance(value, DTensor):
            value = value.detach().full_tensor()
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    return tree_map(together, values)


def train(
    model: nn.Module, optimizer: SparseOptimizer, start: int, stop: int, *, loss=my_loss
) -> dict:
    """Steps `start + 1` to `stop`, with the records of each."""
    seen = {"weights": [], "gradients": [], "masks": [], "updating": [], "norm": [], "local": []}
    for t in range(start + 1, stop + 1):
        optimizer.zero_grad()
        loss(model, t).backward()
        seen["updating"].append(optimizer.is_update_step)
        seen["weights"].append(whole(dict(model.named_parameters())))
        seen["gradients"].append(whole({n: p.grad for n, p in model.named_parameters()}))
        if loss is my_loss:  # torch clips no mixture of DTensors and others
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1e6, foreach=False)
            seen["norm"].append(float(whole(norm)))
        optimizer.step()
        seen["masks"].append(whole(optimizer.masks))
    return {**seen, **outcome(model, optimizer)}


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict:
    return {
        "final": whole(dict(model.named_parameters())),
        "final_masks": whole(optimizer.masks),
        "live": {layer.name: layer.live for layer in optimizer.layers},
        "explored": {layer.name: layer.ever_live for layer in optimizer.layers},
        "state": {
            layer.name: whole(dict(optimizer.state.get(layer.weight, {})))
            for layer in optimizer.layers
        },
        "history": [vars(record) for record in optimizer.history],
        "steps": optimizer.steps,
        "sharded": [type(layer.mask).__name__ for layer in optimizer.layers],
    }


def runs(folder: Path) -> dict:
    """Every run from beginning to end."""
    seen = {}
    for method, name in RUNS:
        model = shard(dense())
        seen[method, name] = train(model, begin(model, method, name), 0, STEPS)
    return seen


def replicas(folder: Path) -> dict:
    """Two replicas of two shards each, with another seed on each rank and none given."""
    torch.manual_seed(100 + dist.get_rank())
    model = shard(dense(), (2, 2))
    return train(model, begin(model, "set", "AdamW", seed=None), 0, STEPS)


def tensor_parallel(folder: Path) -> dict:
    """One layer is spread by rows, the next by columns; every rank has the whole batch."""
    model = dense()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
    return train(model, begin(model, "rigl", "AdamW"), 0, STEPS, loss=whole_loss)


def both_kinds(folder: Path) -> dict:
    """Tensor parallel in pairs of ranks, and FSDP2 over the pairs, which share the batch."""
    model = dense()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    fully_shard(model.conv1, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    part = mesh["data"].get_local_rank()

    def loss(model: nn.Module, index: int) -> torch.Tensor:
        x, y = batch(index, size=SIZE, dtype=torch.float64)
        return F.cross_entropy(model(x.chunk(2)[part]), y.chunk(2)[part])

    with warnings.catch_warnings():
        # FSDP2's advice about the output of a tensor parallel layer.
        warnings.filterwarnings("ignore", ".*returned a view tensor")
        return train(model, begin(model, "rigl", "AdamW"), 0, STEPS, loss=loss)


def replaced(folder: Path) -> dict:
    """Wrap first, shard then, and put the sharded parameters into the groups: as Accelerate."""
    model = dense()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, method="rigl", seed=3, **SETTINGS)
    names = [name for name, _ in model.named_parameters()]
    shard(model)
    by_name = dict(model.named_parameters())
    optimizer.param_groups[0]["params"] = [by_name[name] for name in names]
    return train(model, optimizer, 0, STEPS)


def one_bad_shard(folder: Path) -> dict:
    """At an update step, one entry of the gradient is NaN on the last rank, and on no other."""
    model = shard(dense())
    optimizer = begin(model, "rigl", "SGD")
    first = train(model, optimizer, 0, 3)
    assert optimizer.is_update_step
    my_loss(model, 4).backward()
    if dist.get_rank() == dist.get_world_size() - 1:
        model.fc1.weight.grad.to_local()[0, 0] = float("nan")
    weights = whole(dict(model.named_parameters()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    said = [str(warning.message) for warning in caught]
    return {
        "before": first["masks"][-1],
        "weights": weights,
        "said": said,
        **outcome(model, optimizer),
    }


def save(folder: Path) -> dict:
    """Save in the middle, and train to the end."""
    seen = {}
    for method, name in CHECKPOINTED:
        model = shard(dense())
        optimizer = begin(model, method, name)
        train(model, optimizer, 0, STOP)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / f"{method}-{name}")
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        # On the CPU it holds some tensors without a copy, and training changes them.
        whole_state = copy.deepcopy(get_state_dict(model, optimizer, options=options))
        saved = outcome(model, optimizer)
        rest = train(model, optimizer, STOP, STEPS)
        seen[method, name] = {"saved": saved, "whole": whole_state, **rest}
    return seen


def resume(folder: Path) -> dict:
    """Load what `save` saved, on this number of ranks, and train to the end."""
    seen = {}
    for method, name in CHECKPOINTED:
        model = shard(dense(seed=1))
        optimizer = begin(model, method, name, seed=8)
        weights, state = get_state_dict(model, optimizer)
        both = {"model": weights, "optimizer": state}
        dcp.load(both, checkpoint_id=folder / f"{method}-{name}")
        set_state_dict(
            model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"]
        )
        loaded = outcome(model, optimizer)
        seen[method, name] = {"loaded": loaded, **train(model, optimizer, STOP, STEPS)}
    return seen


def from_unsharded(folder: Path) -> dict:
    """Save where nothing is sharded, with both kinds of state, and load it into a sharded model."""
    seen = {}
    options = StateDictOptions(full_state_dict=True)
    for kind in ("masked", "live"):
        model = dense()
        optimizer = begin(model, "rigl", "AdamW", state=kind)
        train(model, optimizer, 0, STOP, loss=whole_loss)
        weights, state = copy.deepcopy(get_state_dict(model, optimizer, options=options))
        saved = outcome(model, optimizer)
        uninterrupted = train(model, optimizer, STOP, STEPS, loss=whole_loss)
        model = shard(dense(seed=1))
        optimizer = begin(model, "rigl", "AdamW", seed=8)
        set_state_dict(
            model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options
        )
        seen[kind] = {
            "saved": saved,
            "uninterrupted": uninterrupted,
            "loaded": outcome(model, optimizer),
            "resumed": train(model, optimizer, STOP, STEPS),
        }
    return seen


def costs(folder: Path) -> dict:
    """FLOPs in the middle of training, after which training continues."""
    model = shard(dense())
    optimizer = begin(model, "rigl", "SGD")
    train(model, optimizer, 0, STOP)
    report = optimizer.flops()
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return {"report": report.as_dict(), **train(model, optimizer, STOP, STEPS)}


def large(folder: Path) -> dict:
    """A layer whose live weights the kernels would copy if it were not sharded."""
    model = make(LargeNet, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.fc1, mesh=mesh)
    fully_shard(model, mesh=mesh)
    seen = train(model, begin(model, "rigl", "AdamW"), 0, STEPS)
    return {"has_kernels": find_live_copies() is not None, **seen}


def sparse_files(folder: Path) -> dict:
    """Write sparse files of a sharded model, load one into another, and mask a plain copy."""
    model = shard(dense())
    optimizer = begin(model, "rigl", "AdamW")
    seen = {"saved": train(model, optimizer, 0, STOP)}
    given = {"optimizer": optimizer, "masks": optimizer.masks, "nonzero": "nonzero"}
    for name, masks in given.items():
        save_sparse(folder / f"{name}.safetensors", model, masks)
    loaded, copied = shard(dense(seed=1)), dense(seed=2)
    load_sparse(folder / "optimizer.safetensors", loaded)
    optimizer.apply_masks(copied)
    seen["loaded"] = whole(dict(loaded.named_parameters()))
    seen["copied"] = whole(dict(copied.named_parameters()))
    try:
        save_sparse(folder / "missing" / "file.safetensors", model, optimizer)
    except Exception as error:
        mine = type(error).__name__
    errors = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine)
    return {**seen, "errors": errors, **train(model, optimizer, STOP, STEPS)}


def refused(folder: Path) -> str:
    """The error for live state."""
    try:
        begin(shard(dense()), "rigl", "SGD", state="live")
    except ValueError as error:
        return str(error)
    return "nothing"


JOBS = {
    job.__name__: job
    for job in (
        runs,
        replicas,
        tensor_parallel,
        both_kinds,
        replaced,
        one_bad_shard,
        save,
        resume,
        from_unsharded,
        costs,
        large,
        sparse_files,
        refused,
    )
}


def main(folder: Path, jobs: list[str]) -> None:
    dist.init_process_group("gloo")
    for job in jobs:
        seen = JOBS[job](folder)
        if dist.get_rank() == 0:
            torch.save(seen, folder / f"{job}-{dist.get_world_size()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
