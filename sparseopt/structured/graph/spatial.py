"""Rules of operators that work on the last dimensions and treat channels independently."""

from __future__ import annotations

import re
from typing import Final

from torch.fx import Node

from sparseopt.structured.graph.atoms import Labels
from sparseopt.structured.graph.calls import Call, Labelled, rule_for

__all__: list[str] = []

_POOLS: Final = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
_PADS: Final = ("reflection_pad", "replication_pad")
_BY_RANK: Final = tuple(f"{kind}{rank}d" for kind in (*_POOLS, *_PADS) for rank in (1, 2, 3))
_WITH_INDICES: Final = tuple(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3))
_UPSAMPLING: Final = (
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)


@rule_for(*_BY_RANK, *_WITH_INDICES, *_UPSAMPLING)
def _on_last_dims(call: Call) -> Labelled:
    found = re.search(r"(\d)d", call.name)
    assert found is not None
    labels = _without_last(call, int(found.group(1)))
    several = isinstance(call.node.meta["val"], (list, tuple))
    return [labels] * len(call.node.meta["val"]) if several else labels


@rule_for("pad", "constant_pad_nd")
def _pad(call: Call) -> Labels:
    amounts = call.arguments["pad"]
    return _without_last(call, len(amounts) // 2)


def _without_last(call: Call, rank: int) -> Labels:
    operand = call.node.args[0]
    assert isinstance(operand, Node)
    labels = call.labels(operand)
    first = len(labels) - rank
    for atoms in labels[first:]:
        call.block(atoms, f"computes {call.name!r} along them")
    return (*labels[:first], *(None,) * rank)
