"""``save_sparse``: a file with live weights only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparseopt.distributed.dtensor import full_tensor, is_sharded, is_writer, on_any_rank
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.inference.dense_implementations import Frozen, unprepared
from sparseopt.speedup.inference.dense_layers import Affine, DenseLayer
from sparseopt.speedup.inference.files.format import SparseWeight, write
from sparseopt.speedup.inference.live_layers import LiveLayer
from sparseopt.speedup.inference.masks import Masks, masks_by_name
from sparseopt.speedup.inference.sparse_linear import CondensedLinear, CSRLinear
from sparseopt.utils.errors import CheckpointError
from sparseopt.utils.tensors import is_strided
from sparseopt.utils.validation import check_model
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["save_sparse"]

UNSTORABLE: Final = (torch.complex32, torch.complex128)


def save_sparse(
    path: str | Path,
    model_or_optimizer: nn.Module | SparseOptimizer,
    masks: Masks | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the state of a model to a safetensors file that has live weights only.

    For a sparse weight, the file has the live values and their positions. The positions take one
    bit for each weight, or about one byte for each live weight, whichever is less. At a density of
    .1, values and positions take .125 of the bytes of the dense float32 weight, or .075 with values
    in bfloat16. All other tensors of the state dict are stored unchanged. The file has no pickle,
    so ``get_extra_state()`` of a module has to return a tensor, or values that JSON can store.

    If the model is sharded (FSDP2), this is a collective call: every rank takes part, the first
    rank of the mesh writes the file, and the others wait for it.

    Args:
        path: the file to write.
        model_or_optimizer: the model, or an optimizer that was created with the model and has its
            masks.
        masks: which weights of a model are live: an optimizer, masks by name, or ``"nonzero"``,
            which is the default.
        dtype: the number format to store live values in, such as ``torch.bfloat16``. By default
            they keep their format.

    Raises:
        TypeError: if an argument has the wrong type, or ``dtype`` is not a floating-point format.
        ValueError: if the optimizer was created without the model, if a mask does not fit, or if
            the model is on the meta device.
        CheckpointError: if the model is a condensed model with other layers than the original,
            because BatchNorms are folded into their weights, or a frozen program; if dropped
            weights are not zero; if a weight of two or more dimensions is pruned by
            ``torch.nn.utils.prune``, which keeps the dropped values; or if a module has extra
            state that needs a pickle, or a tensor is nested, quantized or not strided, or has a
            number format that safetensors lacks.
        ImportError: if safetensors is not installed.
        RuntimeError: if the model is sharded, and another rank could not write the file.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from sparseopt import load_sparse, save_sparse
        >>> model = torch.nn.Linear(64, 64)
        >>> _ = model.weight.data.mul_(torch.rand(64, 64) < 0.1)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse(path, model)
        >>> again = torch.nn.Linear(64, 64)
        >>> load_sparse(path, again)
        >>> torch.equal(again.weight, model.weight)
        True
    """
    given: object = dtype
    if given is not None and not (isinstance(given, torch.dtype) and given.is_floating_point):
        raise TypeError(f"dtype={given!r} must be a floating-point torch.dtype, or None.")
    if isinstance(model_or_optimizer, SparseOptimizer):
        model = model_or_optimizer.model
        if model is None:
            raise ValueError(
                "the optimizer was created without the model: call "
                "save_sparse(path, model, optimizer)."
            )
        masks = model_or_optimizer if masks is None else masks
    elif isinstance(model_or_optimizer, nn.Module):
        model = model_or_optimizer
    else:
        raise TypeError(
            "model_or_optimizer must be a model or a SparseOptimizer, not a "
            f"{type(model_or_optimizer).__name__}."
        )
    model = unprepared(unwrapped(model))
    check_model("model_or_optimizer", model)
    made = (LiveLayer, DenseLayer, Affine, Frozen, CSRLinear, CondensedLinear)
    if any(isinstance(module, made) for module in model.modules()):
        raise CheckpointError(
            "the model is a condensed model, which has BatchNorms folded into its weights: save "
            "the original model."
        )
    # This comes before weights are read: hooks of the model may change them, as before any saving.
    state = model.state_dict(keep_vars=True)
    found = masks_by_name(model, "nonzero" if masks is None else masks)
    _refuse_pruned(model, found)
    dense: dict[str, Tensor] = {}
    sparse: dict[str, SparseWeight] = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    stored: dict[tuple[Any, ...], str] = {}
    for key, tensor in state.items():
        name = canonical_name(key)
        if any(name in one for one in (dense, sparse, aliases, extra)):
            raise CheckpointError(
                f"two tensors of the model have the same name, {name!r}, once the prefixes of "
                "wrappers (such as 'module.') are removed"
            )
        if not isinstance(tensor, Tensor):
            extra[name] = _plain(name, tensor)
            continue
        _refuse_unstorable(name, tensor)
        # safetensors refuses tensors that share memory, so tied weights are stored once.
        identity = _identity(tensor)
        if tensor.numel() and identity in stored:
            aliases[name] = stored[identity]
        elif name in found:
            sparse[name] = _live(name, full_tensor(tensor.detach()), found[name], dtype)
        else:
            dense[name] = full_tensor(tensor.detach()).clone()
        stored.setdefault(identity, name)
    tensors = [tensor for tensor in state.values() if isinstance(tensor, Tensor)]
    _on_writer(path, tensors, lambda: write(path, dense, sparse, aliases, extra))


def _refuse_unstorable(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        kind = "is nested"
    elif not is_strided(tensor):
        kind = f"has the layout {tensor.layout}"
    elif tensor.is_quantized or tensor.dtype in UNSTORABLE:
        kind = f"has the number format {tensor.dtype}"
    else:
        return
    raise CheckpointError(
        f"{name!r} {kind}, which safetensors can't store: if it is a buffer, register it with "
        "persistent=False, and make it again when the model is made."
    )


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what only tensors that share memory have in common, on every rank alike."""
    # A rank may hold no entry of a sharded tensor, and then no memory that identifies the tensor.
    if is_sharded(tensor):
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _on_writer(path: str | Path, tensors: Sequence[Tensor], act: Callable[[], None]) -> None:
    """Call ``act`` on one of the ranks that hold parts of ``tensors``, and wait for it on all.

    Every rank raises an error if ``act`` does. Without sharded tensors, every rank is on its own.

    Raises:
        Exception: whatever ``act`` raises.
        RuntimeError: if ``act`` raised an error on another rank.
    """
    error: Exception | None = None
    if is_writer(tensors):
        try:
            act()
        except Exception as raised:
            # The other ranks wait for an answer in any case.
            error = raised
    failed = on_any_rank(error is not None, tensors)
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(f"another rank could not write path={str(path)!r}: see its error.")


def _refuse_pruned(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Refuse weights that ``torch.nn.utils.prune`` has pruned, unless they have a mask.

    Their parameters keep the dropped values, which would be stored as live. Parameters of one
    dimension, such as a bias, are always stored in full, so they are stored with their pruning.

    Raises:
        CheckpointError: if there is such a weight.
    """
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if not isinstance(hook, BasePruningMethod):
                continue
            own = hook._tensor_name
            name = canonical_name(f"{path}.{own}_orig" if path else f"{own}_orig")
            if name not in found and getattr(module, f"{own}_orig").dim() > 1:
                raise CheckpointError(
                    f"{name!r} still has the values that torch.nn.utils.prune dropped. To set "
                    f"them to zero before saving, call torch.nn.utils.prune.remove(module, {own!r})"
                    f" for {path or 'the model'!r}."
                )


def _plain(name: str, state: object) -> object:
    """Return extra state of a module unchanged.

    Raises:
        CheckpointError: if it is not equal after it is written to JSON and read again.
    """
    try:
        if json.loads(json.dumps(state)) == state:
            return state
    except (TypeError, ValueError):
        pass
    raise CheckpointError(
        f"{name!r}, from get_extra_state(), is a {type(state).__name__} that a file without pickle "
        "can't store: return a tensor, or a value that JSON stores unchanged (numbers, strings, "
        "lists, and dictionaries with strings as keys)."
    )


def _live(name: str, weight: Tensor, mask: Tensor, dtype: torch.dtype | None) -> SparseWeight:
    """Return the live values of a weight with their positions.

    Raises:
        CheckpointError: if a dropped weight is not zero, because the file would lose its value; or
            if a live weight is too large for ``dtype``.
    """
    mask = mask.to(weight.device)
    if bool(weight[~mask].any()):
        raise CheckpointError(
            f"{name!r} has dropped weights that are not zero: set them to zero, or pass the masks "
            "that the model was trained with."
        )
    positions = mask.flatten().nonzero()[:, 0]
    values = weight.detach().flatten()[positions]
    if dtype is None:
        return SparseWeight(weight.shape, positions, values)
    stored, exact, format_ = values.to(dtype), values.double(), torch.finfo(dtype)
    # Some formats of 8 bits have no infinity: larger numbers become the largest one, or NaN.
    fits = stored.double().isfinite() & (exact.abs() <= format_.max * (1 + format_.eps))
    if bool((~fits & exact.isfinite()).any()):
        raise CheckpointError(
            f"{name!r} has values that are too large for dtype={dtype}: its largest number is "
            f"{format_.max:g}."
        )
    return SparseWeight(weight.shape, positions, stored)
