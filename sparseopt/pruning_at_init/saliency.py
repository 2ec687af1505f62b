"""The common parts of scores by gradient: the weights, the loss, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.distributed.dtensor import is_sharded
from sparseopt.distributions import match_name
from sparseopt.masks.maskable_weights import model_weights, refuse_unusable
from sparseopt.utils.errors import NoSparseLayerError

__all__ = [
    "Losses",
    "all_live",
    "check_finite",
    "gradients",
    "make_losses",
    "scoring_dtype",
    "sparse_weights",
]

#: Functions that run the model on one batch each and return the loss.
Losses = Sequence[Callable[[], Tensor]]


def sparse_weights(model: nn.Module, dense: str | Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Return the trainable weights of ``model`` that :class:`SparseOptimizer` makes sparse.

    Args:
        model: the model.
        dense: layers to leave out.

    Raises:
        NoSparseLayerError: if the model has no such weight.
        TypeError: if ``model`` is not a module, or a weight is of a kind that can't be masked.
        ValueError: if a name in ``dense`` is not known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a torch.nn.Module.")
    weights = {
        name: weight for weight, name in model_weights(model).items() if weight.requires_grad
    }
    left_out = {match_name("dense", name, weights) for name in _names(dense)}
    weights = {name: weight for name, weight in weights.items() if name not in left_out}
    if not weights:
        raise NoSparseLayerError(
            f"no parameter of model={type(model).__name__}(...) is a trainable weight of a "
            "convolution or linear layer that dense= does not leave out."
        )
    for name, weight in weights.items():
        refuse_unusable(name, weight)
        if is_sharded(weight):
            raise TypeError(
                f"parameter {name!r} is a DTensor: make one-shot masks before fully_shard()."
            )
    return weights


def make_losses(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[tuple[Any, Any]] | None,
    *,
    temperature: float = 1.0,
) -> Losses:
    """Return a function without arguments for each batch.

    Args:
        model: the model.
        loss: a function of outputs and targets if there are batches, else of no arguments.
        batches: pairs of inputs and targets.
        temperature: the number that outputs are divided by.

    Raises:
        TypeError: if ``loss`` can't be called, or a batch is not a pair. The functions raise it if
            there is a temperature other than 1 and the model's output is not a tensor.
        ValueError: if ``batches`` is empty.
    """
    _check_callable(loss)
    if batches is None:
        return [loss]
    losses = [_loss_of(model, loss, batch, temperature) for batch in batches]
    if not losses:
        raise ValueError("batches is empty: at least one pair of inputs and targets is needed.")
    return losses


def gradients(
    loss: object, weights: Mapping[str, nn.Parameter], *, create_graph: bool = False
) -> dict[str, Tensor]:
    """Return the gradient by each weight, zero where the loss does not depend on it.

    ``weight.grad`` is not touched.

    Raises:
        TypeError: if the loss is not a scalar tensor with a gradient.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise TypeError(
            f"the loss must be a tensor of one value that depends on the model's weights, "
            f"but is {loss!r}."
        )
    found = torch.autograd.grad(
        loss.sum(), list(weights.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))


def scoring_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return float64 if any weight has it, else float32: half precision would make ties."""
    if any(weight.dtype == torch.float64 for weight in weights.values()):
        return torch.float64
    return torch.float32


def all_live(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks that are true everywhere."""
    return {
        name: torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        for name, weight in weights.items()
    }


def check_finite(scores: Mapping[str, Tensor], because: str) -> None:
    """Raise :class:`ValueError` naming the first layer with a score that is not finite."""
    for name, score in scores.items():
        if not score.isfinite().all():
            raise ValueError(f"a score of layer {name!r} is not finite: {because}")


def _names(names: str | Iterable[str]) -> Iterable[str]:
    return (names,) if isinstance(names, str) else names


def _check_callable(loss: object) -> None:
    if not callable(loss):
        raise TypeError(
            f"loss={loss!r} must be a function: of outputs and targets if batches are given, else "
            "of no arguments, which runs the model and returns the loss."
        )


def _loss_of(
    model: nn.Module, loss: Callable[..., Tensor], batch: object, temperature: float
) -> Callable[[], Tensor]:
    """Return a function that runs the model on one batch and returns the loss."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"a batch must be a pair (inputs, targets), but is a {type(batch).__name__}; for other "
            "data leave batches out and pass a loss of no arguments."
        )
    inputs, targets = batch

    def evaluate() -> Tensor:
        outputs = model(inputs)
        if temperature == 1.0:
            return loss(outputs, targets)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the outputs of the model are a {type(outputs).__name__}, which can't be divided "
                f"by temperature={temperature}: leave batches out, and pass a loss of no arguments "
                "that divides the logits; or pass temperature=1."
            )
        return loss(outputs / temperature, targets)

    return evaluate
