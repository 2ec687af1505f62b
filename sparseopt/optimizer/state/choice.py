"""Chooses the state backend that suits an optimizer."""

from __future__ import annotations

from typing import Final, Literal

from torch import optim

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.base import StateBackend
from sparseopt.optimizer.state.fresh import innermost, is_known
from sparseopt.optimizer.state.live import LiveState
from sparseopt.optimizer.state.masked import MaskedState
from sparseopt.optimizer.state.per_weight import depends_on_shape, probe_shape, show_per_weight
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.validation import check_choice

__all__ = ["StateMode", "make_backend", "renamed_mode"]

StateMode = Literal["auto", "live", "masked"]

#: Element-wise optimizers: they treat all entries of a parameter alike, each independently.
ELEMENTWISE: Final[frozenset[type[optim.Optimizer]]] = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.NAdam,
        optim.RAdam,
        optim.Adamax,
        optim.RMSprop,
        optim.Adagrad,
        optim.Adadelta,
        optim.ASGD,
        optim.Rprop,
    }
)
#: Optimizers that move weights inside ``backward()``, before anything can mask a gradient.
#: transformers wraps other optimizers in this way, for ``optim=`` names that end in ``layerwise``.
STEPS_IN_BACKWARD: Final = ("AdaLomo", "LOMO", "LayerWiseDummyOptimizer", "Lomo")
#: Optimizers of torch that need a parameter's shape, or all parameters at once.
NOT_ELEMENTWISE: Final = ("Adafactor", "LBFGS", "Muon")


def renamed_mode(mode: str, *, stacklevel: int) -> str:
    """Return a mode by its present name; ``"compact"`` is the name of ``"live"`` in 0.1.0.

    Args:
        mode: the mode as the user gave it.
        stacklevel: the frame that a warning names: 1 is the caller of this function, 2 is its
            caller, and so on.
    """
    if mode != "compact":
        return mode
    warn_old_spelling('state="compact"', 'state="live"', stacklevel=stacklevel + 1)
    return "live"


def make_backend(mode: str, inner: optim.Optimizer, layers: list[SparseLayer]) -> StateBackend:
    """Return the backend for ``mode``.

    ``"auto"`` takes live state for exactly the element-wise classes of :mod:`torch.optim`. It
    takes masked state for every other class, subclasses of these included, because their
    computation is not known. Sharded weights have masked state, whose tensors are sharded alike.

    Raises:
        TypeError: if the optimizer moves weights outside of its ``step``.
        ValueError: if ``mode`` is not known, or is ``"live"`` for an optimizer that cannot
            work on a 1-D tensor of live weights.
    """
    check_choice("state", mode, ("auto", "live", "masked"))
    if type(inner).__name__ in STEPS_IN_BACKWARD:
        raise TypeError(
            f"optimizer={type(inner).__name__}(...) cannot be wrapped: it moves weights inside "
            "backward(), where dropped weights would move too. Use an optimizer that moves weights "
            "in step()."
        )
    if mode == "masked":
        return MaskedState(inner, layers)
    obstacle = _obstacle(inner, layers)
    known = type(inner) in ELEMENTWISE
    if mode == "auto" and (obstacle is not None or not known):
        return MaskedState(inner, layers)
    if obstacle is None and not is_known(inner):
        obstacle = _shape_needed(inner, layers)
    if obstacle is not None:
        raise ValueError(
            f"state='live' does not suit {type(inner).__name__} with {obstacle}; "
            "use state='auto' or state='masked'."
        )
    return LiveState(inner, layers, pooled=known)


def _obstacle(inner: optim.Optimizer, layers: list[SparseLayer]) -> str | None:
    """Return the reason why a 1-D tensor of live weights can't replace a weight, if any."""
    if any(layer.is_sharded for layer in layers):
        return "sharded weights (DTensor)"
    if any(group.get("differentiable") for group in inner.param_groups):
        return "differentiable=True"
    if type(innermost(inner)).__name__ in NOT_ELEMENTWISE:
        return "an update that is not element-wise"
    return None


def _shape_needed(inner: optim.Optimizer, layers: list[SparseLayer]) -> str | None:
    """Return why the optimizer needs the shape of a weight, if it does.

    Either a state has this shape but not one value for each entry, or the update is another one for
    a 1-D tensor, as in optimizers that factorise or orthogonalise matrices.
    """
    shapes = {probe_shape(layer.weight.shape): layer.weight for layer in layers}
    for weight in shapes.values():
        for path, is_shown in show_per_weight(inner, weight).shown.items():
            if not is_shown:
                return f"state {path!r}, which is not one number for each weight"
    if any(depends_on_shape(inner, weight) for weight in shapes.values()):
        return "an update that depends on the shape of the weight"
    return None
