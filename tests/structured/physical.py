"""Removing channels from a model by its channel groups alone, as an oracle."""

import copy
from collections import defaultdict

import torch
from torch import nn


def silence(model, chosen):
    """Make the columns of all consumers of ``chosen``, channels by group, zero."""
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group, channels in chosen:
            for part in group.slices_of("consumer"):
                tensors[part.name].index_fill_(part.dim, part.index[channels].flatten(), 0)


def take_out(model, chosen):
    """Return a copy without ``chosen``, channels by group, cut to size tensor by tensor."""
    smaller = copy.deepcopy(model)
    going = defaultdict(list)
    for group, channels in chosen:
        for part in group.slices:
            going[part.name, part.dim] += part.index[channels].flatten().tolist()
            if part.role == "grouped":
                smaller.get_submodule(part.name.rpartition(".")[0]).groups -= len(channels)
    for (path, dim), positions in going.items():
        owner, _, name = path.rpartition(".")
        module = smaller.get_submodule(owner)
        tensor = getattr(module, name).detach()
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
        keep[positions] = False
        tensor = tensor.index_select(dim, keep.nonzero()[:, 0])
        is_buffer = name in module._buffers
        setattr(module, name, tensor if is_buffer else nn.Parameter(tensor))
    return smaller
