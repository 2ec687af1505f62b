"""Refuses training in which ranks may make different numbers of steps, because masks would differ.

Under ``join()`` of :class:`~torch.nn.parallel.DistributedDataParallel` a rank without data takes
part in the communication of the others, but no longer calls ``step()``. So from then on its masks
move at other steps than theirs. This can't be noticed by comparing ranks: no two of them are at the
same step with the same gradients, and a rank without data would not answer.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt.utils.errors import RankMismatchError

__all__ = ["data_parallel_models", "require_equal_steps"]


def require_equal_steps(objects: Iterable[object], method: str) -> None:
    """Raise if ``join()`` lets ranks make different numbers of steps.

    No rank waits for another one here.

    Args:
        objects: the models and optimizers that may be in ``join()``.
        method: the name of the method, whose masks move.

    Raises:
        RankMismatchError: if one of ``objects`` is, or was last, in ``join()``.
    """
    joined = next((one for one in objects if _may_run_out(one)), None)
    if joined is not None:
        raise RankMismatchError(
            f"{type(joined).__name__} is in join() on rank {dist.get_rank()}, so that ranks may "
            f"make a different number of steps. Then method={method!r} moves masks at other steps "
            "on each rank, and the masks differ. join() and other uneven inputs are not supported "
            "with masks that move: leave join() out and give all ranks the same number of batches, "
            "for example by DistributedSampler(..., drop_last=True); or pass method='static'; or "
            "pass throw_on_early_termination=True to join(), which stops all ranks together."
        )


def data_parallel_models(
    model: nn.Module | None, weights: Sequence[Tensor]
) -> list[DistributedDataParallel]:
    """Return every ``DistributedDataParallel`` that trains one of ``weights``.

    If ``model`` is not one, this looks at all objects of the process, for some tenths of a second.

    Args:
        model: the model that the optimizer was made with; perhaps the module inside, or ``None``.
        weights: the weights.
    """
    if isinstance(model, DistributedDataParallel):
        return [model]
    if not weights:
        return []
    wanted = {id(weight) for weight in weights}
    # DDP leaves no trace on the module inside. isinstance() would run code of proxies.
    models = [one for one in gc.get_objects() if DistributedDataParallel in type(one).__mro__]
    return [
        model
        for model in models
        if any(id(parameter) in wanted for parameter in model.parameters())
    ]


def _may_run_out(joinable: object) -> bool:
    """Whether ``join()`` covers for a rank without data; it may also stop all ranks instead."""
    # Checked with torch 2.14. It has no public function that says so.
    config = getattr(joinable, "_join_config", None)
    covers = bool(getattr(config, "enable", False))
    return covers and not getattr(config, "throw_on_early_termination", False)
