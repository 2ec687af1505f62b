"""Fresh filters for dropped channels, by which an update finds out which of them should grow.

A dropped channel has no signal. Its filter, its scale and the weights that it is multiplied by are
zero, so all their gradients are zero for any data. So the channel gets a fresh filter and scale,
while the weights that it is multiplied by stay zero. The model then computes exactly the same as
before, and the gradient of these weights shows what they would learn from the channel. Growth where
a new unit's gradient is largest, with the function unchanged, is the idea of Evci et al. 2022,
"GradMax: Growing Neural Networks using Gradient Information".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.structured.channel_groups import MAKERS, ChannelGroup, ChannelSlice
from sparseopt.structured.channel_masks import live_along, live_channels, mask_from
from sparseopt.utils.random import normal

__all__ = ["put_fresh_channels"]


@torch.no_grad()
def put_fresh_channels(
    groups: Sequence[ChannelGroup],
    layers: Mapping[str, SparseLayer],
    buffers: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Give all dropped channels fresh filters, scales and statistics.

    Filters are normally distributed, with the root mean square of the layer's live weights. They
    are zero where they read dropped channels. Scales are the mean scale of live channels, and
    running variances their mean running variance. Running means are 0.

    Args:
        groups: the channels of the model.
        layers: the layers, by name.
        buffers: the model's buffers, by name.
        generator: the random source, on the CPU.
    """
    masks = {name: layer.mask for name, layer in layers.items()}
    for group in groups:
        made = group.slices_of(*MAKERS)
        if not made or made[0].name not in masks:
            continue
        live = live_channels(group, masks)
        if bool(live.all()):
            continue
        for place in group.slices:
            if place.role in MAKERS:
                _put_filters(layers[place.name], place, live, generator)
            elif place.role in ("scale", "elementwise") and place.name in layers:
                _put_mean(layers[place.name].weight, place, live)
            elif place.role == "variance":
                _put_mean(buffers[place.name], place, live)
            elif place.role == "mean":
                _put(buffers[place.name], place, live, 0.0)


def _put_filters(
    layer: SparseLayer, place: ChannelSlice, live: Tensor, generator: torch.Generator
) -> None:
    """Write normal values into the filters of dropped channels.

    The values have the root mean square of the layer's live weights. Only columns that have a live
    weight are written. Random numbers are drawn for the full weight, so the generator advances
    equally far, whichever channels are dropped.
    """
    weight = layer.weight
    along = {dim: live_along(layer.mask, dim) for dim in range(weight.dim())}
    along[place.dim] = torch.zeros(weight.shape[place.dim], dtype=torch.bool, device="cpu")
    along[place.dim][place.index[~live]] = True
    size = layer.gather(weight).float().square().mean().sqrt()
    values = normal(weight.shape, generator).to(weight.device) * size
    fresh = mask_from(weight.shape, along).to(weight.device)
    weight.copy_(torch.where(fresh, values.to(weight.dtype), weight))


def _put_mean(tensor: Tensor, place: ChannelSlice, live: Tensor) -> None:
    positions = place.index[live].flatten().to(tensor.device)
    _put(tensor, place, live, float(tensor.index_select(place.dim, positions).double().mean()))


def _put(tensor: Tensor, place: ChannelSlice, live: Tensor, value: float) -> None:
    tensor.index_fill_(place.dim, place.index[~live].flatten().to(tensor.device), value)
