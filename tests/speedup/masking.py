"""Optimizers with masks that drop entire channels, chosen by hand."""

import torch
from torch import nn

from sparseopt import SparseOptimizer

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def optimizer_without(model, filters=None, columns=None, inner=None):
    """Return a static optimizer whose masks drop ``filters`` and ``columns``, lists by module."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            mask = torch.ones(module.weight.shape, dtype=torch.bool)
            mask[(filters or {}).get(name, [])] = False
            mask[:, (columns or {}).get(name, [])] = False
            masks[f"{name}.weight"] = mask
    return static(model, masks, inner)


def optimizer_without_half(model, seed=0, inner=None):
    """Return a static optimizer that drops about half of the filters of every layer."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            stays = torch.rand(module.weight.shape[0], generator=generator) < 0.5
            stays[0] = True
            along = (-1, *(1,) * (module.weight.dim() - 1))
            masks[f"{name}.weight"] = stays.view(along).expand_as(module.weight).clone()
    return static(model, masks, inner)


def static(model, masks, inner=None):
    inner = inner or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dense = dict.fromkeys(masks, 1.0)
    return SparseOptimizer(inner, model, method="static", init=dense, mask=masks)


def settle(model, image, shifts=(-0.3, 0.1)):
    """Give every BatchNorm the scale, shift and statistics of a trained model, after masking.

    Then mean and variance of a dropped filter are 0, and BatchNorm returns its shift.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, *shifts)
        norm.reset_running_stats()
        # The running statistics become the statistics of this one batch.
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(image)
    for norm in norms:
        norm.momentum = 0.1
