"""The implementations of each layer of a network in one number format."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseopt.speedup import kernels
from sparseopt.speedup.inference.dense_layers import DenseConv2d, DenseLinear
from sparseopt.speedup.inference.live_layers import LiveConv2d, LiveLayer, LiveLinear
from sparseopt.speedup.inference.network import ModuleNetwork, Network, Site
from sparseopt.speedup.inference.regions import Candidates
from sparseopt.speedup.inference.report import LayerTimes
from sparseopt.speedup.inference.sparse_linear import (
    CondensedLinear,
    CSRLinear,
    is_constant_fan_in,
)
from sparseopt.speedup.kernels.calls import DTYPES
from sparseopt.speedup.live_training.layer_state import has_kernels
from sparseopt.speedup.live_training.possible import FULL_UP_TO
from sparseopt.utils.hooks import has_hooks, has_own_functions
from sparseopt.utils.wrappers import canonical_name

__all__ = ["candidates_for", "uncovered"]


def candidates_for(
    network: Network | ModuleNetwork, masks: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[list[Candidates], dict[str, str]]:
    """Return the implementations of each layer, in the order of the network.

    Also return, by name of the layer, why no implementation can use live weights only.

    Args:
        network: the model.
        masks: which weights are live, by canonical name of the parameter.
        dtype: the number format to compute in.
    """
    found: list[Candidates] = []
    obstacles: dict[str, str] = {}
    for site in network.sites.values():
        mask = masks.get(site.origin.weight)
        inputs = tuple(x.detach().to(dtype) for x in site.inputs)
        layers: dict[str, nn.Module] = {"dense": _dense(site, dtype)}
        if mask is not None:
            sparse, obstacle = _sparse(site, mask, dtype, inputs)
            layers.update(sparse)
            if obstacle is not None:
                obstacles[site.name] = obstacle
        elif _fits(site.module, dtype) is None and _is_small(site.module):
            everything = torch.ones_like(site.module.weight, dtype=torch.bool)
            layers["full"] = _live(site, everything, dtype)
        density = 1.0 if mask is None else mask.sum().item() / mask.numel()
        found.append(Candidates(site, density, layers, inputs))
    return found, obstacles


def uncovered(
    model: nn.Module, network: Network | ModuleNetwork, masks: Mapping[str, Tensor]
) -> list[LayerTimes]:
    """Return an entry for each sparse weight that belongs to no layer of the network."""
    covered = {site.origin.weight for site in network.sites.values()}
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    entries = []
    for name, mask in masks.items():
        if name in covered:
            continue
        owner = modules.get(name.rpartition(".")[0], model)
        around = _module_around(name, network)
        density = mask.sum().item() / mask.numel()
        if has_hooks(owner):
            reason = "it has hooks, which a sparse layer would not run"
        elif has_own_functions(owner):
            reason = "a function of its module is replaced, which a sparse layer would not call"
        elif around is not None:
            path, kind = around
            reason = f"the {kind} around it, {path!r}, is computed as a whole"
        else:
            reason = f"the kernels do not support its module, {type(owner).__name__}"
        entries.append(LayerTimes(name, density, "", {}, "dense", reason))
    return entries


def _module_around(name: str, network: Network | ModuleNetwork) -> tuple[str, str] | None:
    """Return path and class of the module of a graph that has the module of a weight inside it."""
    if isinstance(network, ModuleNetwork):
        return None
    owner = name.rpartition(".")[0]
    for path, one in network.targets.items():
        if isinstance(one, nn.Module) and owner.startswith(f"{canonical_name(path)}."):
            return path, type(one).__name__
    return None


def _sparse(
    site: Site, mask: Tensor, dtype: torch.dtype, inputs: tuple[Tensor, ...]
) -> tuple[dict[str, nn.Module], str | None]:
    """Return the sparse implementations of a layer, or none and the reason."""
    weight = site.module.weight.detach()
    if bool(weight[~mask.to(weight.device)].any()):
        return {}, "it has dropped weights that are not zero"
    obstacle = _fits(site.module, dtype)
    if obstacle is None:
        return {"live": _live(site, mask, dtype)}, None
    if isinstance(site.module, nn.Linear) and inputs:
        found = _sparse_linear(site, mask.to(weight.device), dtype, inputs[0])
        return found, None if found else obstacle
    return {}, obstacle


def _fits(module: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> str | None:
    """Return why the kernels can't compute a layer in this number format, or ``None``."""
    reason = kernels.why_not()
    if reason is not None:
        return f"there are no sparse kernels: {reason}"
    if module.weight.device.type != "cpu":
        return "there are sparse kernels for CPUs only"
    if dtype not in DTYPES:
        return f"the kernels do not support {str(dtype).removeprefix('torch.')}"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return "the kernels do not support groups"
    return None if has_kernels(module) else "the kernels do not support its settings"


def _is_small(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether to try the kernels with all weights, which saves conversions to their layout."""
    return isinstance(module, nn.Conv2d) and module.weight[0].numel() <= FULL_UP_TO


def _sparse_linear(site: Site, mask: Tensor, dtype: torch.dtype, x: Tensor) -> dict[str, nn.Module]:
    """Return layers by torch's sparse products that support this device and number format."""
    module = site.module
    weight = module.weight.detach().to(dtype)
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    layers: dict[str, nn.Module] = {"CSR": CSRLinear(weight, mask, bias)}
    if is_constant_fan_in(mask):
        layers["condensed"] = CondensedLinear(weight, mask, bias)
    runs = {name: layer for name, layer in layers.items() if _runs(layer, x)}
    if site.bounds is None:
        return runs
    return {name: nn.Sequential(layer, nn.Hardtanh(*site.bounds)) for name, layer in runs.items()}


@torch.no_grad()
def _runs(module: nn.Module, x: Tensor) -> bool:
    try:
        module(x)
    # This includes NotImplementedError. Builds without MKL raise a plain RuntimeError.
    except RuntimeError:
        return False
    return True


def _dense(site: Site, dtype: torch.dtype) -> nn.Module:
    module = site.module
    layer: DenseConv2d | DenseLinear
    if isinstance(module, nn.Conv2d):
        layer = DenseConv2d(module, dtype, site.origin, site.bounds)
    else:
        layer = DenseLinear(dtype, site.origin, site.bounds, module.weight.device)
    layer.set_weights(module.weight, module.bias, site.norm)
    return layer.eval()


def _live(site: Site, mask: Tensor, dtype: torch.dtype) -> LiveLayer:
    """Return a layer that multiplies only live weights, with the weights of ``site``."""
    module = site.module
    layer: LiveLayer
    if isinstance(module, nn.Conv2d):
        layer = LiveConv2d(module, dtype, site.origin, site.bounds)
    else:
        layer = LiveLinear(module.weight.shape, dtype, site.origin, site.bounds)
    weight = module.weight.detach()
    positions = mask.to(weight.device).flatten().nonzero()[:, 0]
    layer.set_weights(positions, weight.flatten()[positions], module.bias, site.norm)
    layer.eval()
    return layer
