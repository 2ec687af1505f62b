"""``load_sparse``: loads a small file into a model, or into a condensed model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from sparseopt.distributed.dtensor import shard_like
from sparseopt.speedup.inference.dense_implementations import Frozen, unprepared
from sparseopt.speedup.inference.dense_layers import Affine, DenseLayer
from sparseopt.speedup.inference.files.format import SparseFile, SparseWeight
from sparseopt.speedup.inference.live_layers import LiveLayer, NormStatistics, Origin
from sparseopt.speedup.inference.network import original_names
from sparseopt.speedup.inference.sparse_linear import CondensedLinear, CSRLinear
from sparseopt.utils.errors import CheckpointError
from sparseopt.utils.validation import check_model
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["load_sparse"]

#: The last part of the names of extra state in a state dict.
_EXTRA_STATE: Final = nn.modules.module._EXTRA_STATE_KEY_SUFFIX
#: A file may have this buffer of a BatchNorm, but a folded BatchNorm does not need it.
_UNUSED = "num_batches_tracked"


@torch.inference_mode(False)
@torch.no_grad()
def load_sparse(path: str | Path, model: nn.Module) -> None:
    """Load a file that :func:`save_sparse` wrote into a model.

    The dropped weights of an ordinary model become zeros. The model may also be one that
    :func:`condense` returned for the same network. Then its layers take the live values without a
    dense weight in between, and the BatchNorms of the file are folded in. The live weights may
    differ from the live weights that the model was condensed with. If something does not fit,
    nothing is loaded. If the model is sharded (FSDP2), every rank calls this, reads the file, and
    keeps its own part.

    Args:
        path: the file.
        model: the model to load into.

    Raises:
        CheckpointError: if the file was not written by ``save_sparse``; if names or shapes differ
            between file and model, with all differences; or if the model is or contains a frozen
            program, or has layers that can't load.
        TypeError: if the model is not a module.
        ValueError: if the model is on the meta device.
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from sparseopt import load_sparse, save_sparse
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse(path, torch.nn.Linear(8, 8, bias=False))
        >>> load_sparse(path, torch.nn.Linear(8, 4, bias=False))
        Traceback (most recent call last):
        ...
        sparseopt.CheckpointError: ... 'weight' has the shape (8, 8), but (4, 8) in the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={type(model).__name__}(...) must be a torch.nn.Module: load the file into the "
            "model, and then make the SparseOptimizer with mask='nonzero'."
        )
    file = SparseFile(path)
    model = unprepared(unwrapped(model))
    check_model("model", model)
    if any(isinstance(module, Frozen) for module in model.modules()):
        raise CheckpointError(
            "the model that condense() returned is a frozen program, which can't load weights: "
            "load the file into the original model, and condense the original model again."
        )
    _refuse_sparse_products(model)
    folded = [one for one in model.modules() if isinstance(one, (LiveLayer, DenseLayer, Affine))]
    inside = {id(tensor) for layer in folded for tensor in layer.buffers()}
    # Tied weights have an entry for each of their names.
    others = {
        canonical_name(name): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) not in inside
    }
    extra = _with_extra_state(model)
    for name in extra:
        # Extra state may be a tensor, of any shape. Only set_extra_state() may write it.
        others.pop(name, None)
    wanted = {*others, *extra}
    shapes: dict[str, torch.Size] = {name: one.shape for name, one in others.items()}
    for layer in folded:
        wanted |= _names(layer.origin)
        if isinstance(layer, LiveLayer):
            shapes[layer.origin.weight] = layer.shape
        elif isinstance(layer, DenseLayer):
            shapes[layer.origin.weight] = layer.weight.shape
    unused = (_unused(file, wanted, folded) if folded else set()) | original_names(model)
    _check(file, wanted, shapes, unused)
    for name in wanted:
        if file.is_sparse(name):
            file.sparse(name)  # raises an error for damaged weights before anything is loaded
    for name, tensor in others.items():
        tensor.copy_(shard_like(_dense(file, name, tensor.dtype), tensor))
    for layer in folded:
        _fill(layer, file)
    for name, module in extra.items():
        module.set_extra_state(file.extra[name] if name in file.extra else file.tensor(name))


def _refuse_sparse_products(model: nn.Module) -> None:
    """Refuse layers by torch's sparse products, whose tensors fit one set of live weights only.

    Raises:
        CheckpointError: if the model has such a layer.
    """
    for path, module in model.named_modules():
        if isinstance(module, (CSRLinear, CondensedLinear)):
            raise CheckpointError(
                f"layer {path!r} of the condensed model is a {type(module).__name__}, because the "
                "sparse kernels do not compute it here, and it can't load weights: load the file "
                "into the original model, and condense the original model again."
            )


def _with_extra_state(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have extra state, by its name in the state dict."""
    none = nn.Module.get_extra_state
    return {
        canonical_name(f"{path}.{_EXTRA_STATE}" if path else _EXTRA_STATE): module
        for path, module in model.named_modules(remove_duplicate=False)
        if type(module).get_extra_state is not none
    }


def _fill(layer: LiveLayer | DenseLayer | Affine, file: SparseFile) -> None:
    """Set the weights of a layer from a file. Both the layer and the weight may be dense or sparse.

    For a sparse layer, a dense weight has all positions live. For a dense layer, a sparse weight
    has zeros at all other positions.
    """
    origin = layer.origin
    norm = _norm(origin, file)
    if isinstance(layer, Affine):
        assert norm is not None
        layer.set_norm(norm)
        return
    bias = None if origin.bias is None else _stored(file, origin.bias)
    if isinstance(layer, LiveLayer):
        weight = _sparse(file, origin.weight)
        layer.set_weights(weight.positions, weight.values, bias, norm)
    else:
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        layer.set_weights(_dense(file, origin.weight, wide), bias, norm)


def _sparse(file: SparseFile, name: str) -> SparseWeight:
    if file.is_sparse(name):
        return file.sparse(name)
    weight = file.tensor(name)
    return SparseWeight(weight.shape, torch.arange(weight.numel()), weight.flatten())


def _dense(file: SparseFile, name: str, dtype: torch.dtype) -> Tensor:
    return file.sparse(name).dense(dtype) if file.is_sparse(name) else file.tensor(name)


def _stored(file: SparseFile, name: str) -> Tensor:
    """Return a tensor in the number format in which it is stored, which may be sparse."""
    if not file.is_sparse(name):
        return file.tensor(name)
    sparse = file.sparse(name)
    return sparse.dense(sparse.values.dtype)


def _norm(origin: Origin, file: SparseFile) -> NormStatistics | None:
    if origin.norm is None:
        return None
    mean, variance, weight, bias = (
        _stored(file, f"{origin.norm}.{part}") if f"{origin.norm}.{part}" in file else None
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None
    assert variance is not None
    return NormStatistics.of(mean, variance, weight, bias, origin.eps)


def _names(origin: Origin) -> set[str]:
    """Return the names that the file must have for a layer."""
    names = {origin.weight, origin.bias}
    if origin.norm is not None:
        names |= {f"{origin.norm}.running_mean", f"{origin.norm}.running_var"}
    return {name for name in names if name}


def _unused(
    file: SparseFile, wanted: set[str], folded: list[LiveLayer | DenseLayer | Affine]
) -> set[str]:
    """Return the names in the file that a condensed model has no use for.

    These are parts of folded BatchNorms, further names of tied tensors, and extra state of modules
    of which the graph has only the operations.
    """
    norms = {layer.origin.norm for layer in folded} - {None}
    stored = {file.aliases.get(name, name) for name in wanted}
    return {
        *(f"{norm}.{part}" for norm in norms for part in ("weight", "bias", _UNUSED)),
        *(name for name in file.names if file.aliases.get(name, name) in stored),
        *(name for name in file.names if name.rpartition(".")[2] == _EXTRA_STATE),
    }


def _check(
    file: SparseFile, wanted: set[str], shapes: dict[str, torch.Size], unused: set[str]
) -> None:
    """Compare names and shapes with the file, and raise one error with all differences.

    Raises:
        CheckpointError: if a name is missing or unknown, or a shape differs.
    """
    names = file.names
    faults = [f"{name!r} is not in the file" for name in sorted(wanted - names)]
    faults += [f"{name!r} is not in the model" for name in sorted(names - wanted - unused)]
    for name in sorted(wanted & names & set(shapes)):
        stored = file.shapes.get(file.aliases.get(name, name))
        shape = file.tensor(name).shape if stored is None else stored
        if shape != shapes[name]:
            faults.append(
                f"{name!r} has the shape {tuple(shape)}, but {tuple(shapes[name])} in the model"
            )
    if faults:
        raise CheckpointError(f"{file.path} does not fit the model: {'; '.join(faults)}.")
