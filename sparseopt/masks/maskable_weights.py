"""Which weights of a model, or of an optimizer, can be made sparse, and what they are called."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "computed_from",
    "computed_weights",
    "embedding_weights",
    "has_shape",
    "is_matrix",
    "model_weights",
    "optimizer_weights",
    "refuse_unusable",
    "standardised_weights",
    "standardises",
]

#: Modules whose ``weight`` is a matrix that inputs are multiplied by.
WEIGHTED: Final = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: Linear maps of other packages, by name, so that nothing has to be imported.
WEIGHTED_ELSEWHERE: Final = frozenset({"transformers.pytorch_utils.Conv1D"})
#: Convolutions of other packages that standardise their weight in every forward pass, by name. They
#: subtract a mean from each filter, so a zero of the weight is no zero of the convolution.
STANDARDISING: Final = frozenset(
    {
        "timm.layers.std_conv.ScaledStdConv2d",
        "timm.layers.std_conv.ScaledStdConv2dSame",
        "timm.layers.std_conv.StdConv2d",
        "timm.layers.std_conv.StdConv2dSame",
        "transformers.models.bit.modeling_bit.WeightStandardizedConv2d",
    }
)
ATTENTION_PROJECTIONS: Final = (
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
)
#: Classes of :mod:`torch.nn.utils.parametrizations` by the functions that register them.
KNOWN_PARAMETRIZATIONS: Final = {
    "SpectralNorm": "spectral_norm",
    "WeightNorm": "weight_norm",
    "Orthogonal": "orthogonal",
}


def has_shape(parameter: torch.Tensor) -> bool:
    """Whether a parameter has a shape: a lazy module has none before its first input."""
    return not nn.parameter.is_lazy(parameter)


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether two or more dimensions have more than one entry.

    The magnitudes of weight norm, ``(N, 1, 1)``, are no matrix: they have one entry for each
    filter, so a mask on them would remove complete filters.
    """
    return sum(size > 1 for size in parameter.shape) >= 2


def embedding_weights(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights of the embeddings in ``model``, which stay dense."""
    return {
        parameter
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }


def model_weights(model: nn.Module, also: Collection[nn.Parameter] = ()) -> dict[nn.Parameter, str]:
    """Return the weights of ``model`` that can be sparse, with their names, in its order.

    These are the weights of convolutions, transposed convolutions and linear layers (also of
    ``Conv1D``, the linear layer of transformers' GPT-2), and the projections of
    :class:`torch.nn.MultiheadAttention`. A weight that an embedding shares is left out, and so are
    a weight without entries and a weight that its module standardises. A weight that several
    modules share has the name of the first.

    Args:
        model: the model.
        also: parameters of other modules, embeddings included, that are to be sparse too.

    Raises:
        ValueError: if a module is lazy and has not seen an input yet, or if two weights have the
            same name once the parts that wrappers add are removed.
    """
    embeddings = embedding_weights(model)
    wanted = set(also)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        others = (own for own in module.parameters(recurse=False) if own in wanted)
        for parameter in (*_matrices(module), *others):
            if not has_shape(parameter):
                raise ValueError(
                    f"module {path!r} is lazy and has no shape yet: run one input through the "
                    "model before the optimizer is made."
                )
            if (parameter in wanted or parameter not in embeddings) and parameter.numel():
                found.setdefault(parameter, canonical_name(names[parameter]))
    _refuse_same_names(found)
    return found


def optimizer_weights(groups: list[dict[str, Any]]) -> dict[nn.Parameter, str]:
    """Return every matrix (see :func:`is_matrix`) in ``groups``, with a name, in group order.

    If the optimizer was made from ``named_parameters()``, the groups carry the names. Otherwise
    the names are ``"group.index"``.

    Raises:
        ValueError: if two have the same name.
    """
    found: dict[nn.Parameter, str] = {}
    for number, group in enumerate(groups):
        names = group.get("param_names")
        for index, parameter in enumerate(group["params"]):
            if is_matrix(parameter):
                name = names[index] if names else f"{number}.{index}"
                found[parameter] = canonical_name(name)
    _refuse_same_names(found)
    return found


def _refuse_same_names(names: Mapping[nn.Parameter, str]) -> None:
    seen: set[str] = set()
    for name in names.values():
        if name in seen:
            raise ValueError(
                f"two different weights are called {name!r}, once the prefixes of wrappers "
                "(module., _orig_mod.) are removed: rename one, because masks are found by name."
            )
        seen.add(name)


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that are weight matrices or filters of a module of a known kind."""
    names: tuple[str, ...] = ()
    if standardises(module):
        return
    if isinstance(module, WEIGHTED) or _full_name(type(module)) in WEIGHTED_ELSEWHERE:
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = ATTENTION_PROJECTIONS
    for name in names:
        # A reparametrised weight is computed from others, and is not in _parameters.
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield parameter


def standardises(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution that standardises its weight in every forward pass."""
    return any(_full_name(kind) in STANDARDISING for kind in type(module).__mro__)


def standardised_weights(model: nn.Module) -> dict[str, str]:
    """Return the names of weights that their modules standardise, with the modules' classes."""
    return {
        canonical_name(f"{path}.weight" if path else "weight"): type(module).__name__
        for path, module in model.named_modules()
        if standardises(module)
    }


def computed_weights(model: nn.Module) -> dict[str, str]:
    """Return the weights of linear maps that are computed from other parameters, and how.

    Returns:
        The name of each such weight, with what computes it: a parametrization; the older
        ``weight_norm`` or ``spectral_norm``; or ``prune``, for :mod:`torch.nn.utils.prune`.

    Example:
        >>> from torch.nn.utils.parametrizations import spectral_norm
        >>> computed_weights(nn.Sequential(spectral_norm(nn.Linear(4, 4))))
        {'0.weight': 'parametrizations.spectral_norm'}
    """
    found = {}
    for path, module in model.named_modules():
        how = _computed_by(module) if isinstance(module, WEIGHTED) else None
        if how is not None:
            found[canonical_name(f"{path}.weight" if path else "weight")] = how
    return found


def computed_from(module: nn.Module) -> str | None:
    """Return which parameter an older function of :mod:`torch.nn.utils` computes ``weight`` from.

    A module of a user may have an ordinary parameter called ``weight_v`` or ``weight_orig``. Such a
    module has no magnitude, no mask and no singular vector beside it, and the result is ``None``.

    Example:
        >>> computed_from(torch.nn.utils.spectral_norm(nn.Linear(4, 4)))
        'weight_orig'
    """
    names, buffers = module._parameters, module._buffers
    if names.get("weight") is not None:
        return None
    if names.get("weight_v") is not None and "weight_g" in names:
        return "weight_v"
    if names.get("weight_orig") is not None and ("weight_mask" in buffers or "weight_u" in buffers):
        return "weight_orig"
    return None


def _computed_by(module: nn.Module) -> str | None:
    """Return what computes the module's weight from other parameters; ``None`` if nothing does."""
    if is_parametrized(module, "weight"):
        chain: Any = module.parametrizations
        kind = type(chain.weight[0]).__name__.removeprefix("_")
        return f"parametrizations.{KNOWN_PARAMETRIZATIONS.get(kind, kind)}"
    names = module._parameters
    if "weight_orig" in names:
        # The older spectral norm has its vectors in buffers, and prune has its mask there.
        return f"{'prune' if 'weight_mask' in module._buffers else 'spectral_norm'} (weight_orig)"
    if "weight_g" in names and "weight_v" in names:
        return "weight_norm (weight_g, weight_v)"
    return None


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse_unusable(name: str, weight: torch.Tensor) -> None:
    """Raise :class:`TypeError` if ``weight`` is complex or has a layout that can't be masked."""
    advice = "give its param group density=False to keep it dense"
    if weight.is_complex():
        raise TypeError(
            f"parameter {name!r} is complex ({weight.dtype}), which is not supported: {advice}."
        )
    if weight.layout != torch.strided:
        raise TypeError(
            f"parameter {name!r} has layout {weight.layout}, not torch.strided: {advice}."
        )
