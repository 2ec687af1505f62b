"""Which weights are to be sparse, as the user says it, beyond what is sparse by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from sparseopt.masks.prunable import COMPUTED_FROM, is_matrix
from sparseopt.utils.names import is_pattern, means
from sparseopt.utils.validation import unknown_name
from sparseopt.utils.wrappers import canonical_name

__all__ = ["Selection", "check_selection", "select", "stacked_matrices", "written_name"]

#: What selects weights in a mapping: the name of a parameter or a module, or a pattern of such
#: names (``"encoder.*"``); a class of modules; a module; a parameter.
Selector = str | type[nn.Module] | nn.Module | nn.Parameter
#: From selectors to whether what they select is to be sparse. Names, modules and parameters come
#: before patterns and classes; of equals the last counts. Or a function of a parameter's name, the
#: parameter and its module, which returns None for the default.
Selection = Mapping[Selector, bool] | Callable[[str, nn.Parameter, nn.Module], bool | None]

#: Parametrizations that leave the weight zero wherever what they compute it from is zero.
KEEPS_ZEROS: Final = (_WeightNorm, _SpectralNorm)
PARAMETRIZATIONS: Final = ".parametrizations."


def check_selection(sparse: object, model: nn.Module | None) -> None:
    """Raise :class:`TypeError` unless ``sparse`` says which weights of ``model`` are sparse."""
    if sparse is None:
        return
    if model is None:
        raise TypeError(
            "sparse= selects weights by their names and modules, so it needs the model: pass it as "
            "the second argument."
        )
    if callable(sparse):
        return
    if not isinstance(sparse, Mapping):
        raise TypeError(
            f"sparse={sparse!r} must be a mapping from names, patterns, module classes, modules or "
            "parameters to True or False, as in {nn.LSTM: True, 'head': False}, or a function of "
            "(name, parameter, module)."
        )
    for key, value in sparse.items():
        if not isinstance(value, bool):
            raise TypeError(
                f"sparse[{key!r}]={value!r} must be True or False; how dense a layer is goes into "
                "init=, as in {'head': 0.5, '*': 'erk'}."
            )


def select(model: nn.Module, sparse: Selection) -> dict[nn.Parameter, bool]:
    """Return the parameters of ``model`` that ``sparse`` selects, and whether as sparse or dense.

    Raises:
        TypeError: if a selector is of no usable type, or a function returns no bool.
        ValueError: if a selector matches nothing, or only what cannot be sparse.
    """
    if callable(sparse):
        return _by_function(model, sparse)
    chosen: dict[nn.Parameter, bool] = {}
    for selector in sorted(sparse, key=_names_one):
        wanted = sparse[selector]
        chosen.update(dict.fromkeys(_selected(model, selector, wanted), wanted))
    return chosen


def _names_one(selector: object) -> bool:
    """Whether a selector names what it means, so that it comes before patterns and classes."""
    return not isinstance(selector, type) and not (
        isinstance(selector, str) and is_pattern(selector)
    )


def _by_function(
    model: nn.Module, sparse: Callable[[str, nn.Parameter, nn.Module], bool | None]
) -> dict[nn.Parameter, bool]:
    chosen = {}
    for name, parameter, module in _owned(model):
        wanted = sparse(name, parameter, module)
        if wanted is None:
            continue
        if not isinstance(wanted, bool):
            raise TypeError(
                f"sparse={sparse!r} returned {wanted!r} for {name!r}; it must return True, False, "
                "or None for the default."
            )
        if wanted:
            _refuse_unmaskable(name, parameter, module)
        chosen[parameter] = wanted
    return chosen


def _selected(model: nn.Module, selector: object, wanted: bool) -> list[nn.Parameter]:
    """Return the matrices that one selector means."""
    found = [entry for entry in _owned(model) if _means(model, selector, entry)]
    if not found:
        raise _matches_nothing(model, selector)
    matrices = [(name, p, module) for name, p, module in found if is_matrix(p)]
    if not matrices:
        raise ValueError(
            f"sparse[{_shown(selector)}] selects {', '.join(repr(name) for name, *_ in found)}, "
            "which can't be sparse: only parameters can of which two or more dimensions have more "
            "than one entry."
        )
    if wanted:
        for name, parameter, module in matrices:
            _refuse_unmaskable(name, parameter, module)
    return [parameter for _, parameter, _ in matrices]


#: A parameter's name, the parameter, and the module that has it.
_Owned = tuple[str, nn.Parameter, nn.Module]


def _owned(model: nn.Module) -> Iterator[_Owned]:
    """Yield every parameter of ``model`` with its name and module, once."""
    names = {parameter: canonical_name(name) for name, parameter in model.named_parameters()}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if (name := names.pop(parameter, None)) is not None:
                yield name, parameter, module


def _means(model: nn.Module, selector: object, entry: _Owned) -> bool:
    name, parameter, _ = entry
    if isinstance(selector, nn.Parameter):
        return parameter is selector
    if isinstance(selector, nn.Module):
        return any(parameter is own for own in selector.parameters())
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        owners = (module for module in model.modules() if isinstance(module, selector))
        return any(parameter is own for module in owners for own in module.parameters())
    if not isinstance(selector, str):
        raise TypeError(
            f"sparse has the key {selector!r}; it takes a name, a pattern, a class of modules, a "
            "module or a parameter."
        )
    return means(selector, name) or means(selector, written_name(name))


def written_name(name: str) -> str:
    """Return the name of the weight that is computed from the parameter ``name``, if one is.

    Example:
        >>> written_name("conv.parametrizations.weight.original1")
        'conv.weight'
    """
    path, inside, rest = name.partition(PARAMETRIZATIONS)
    if inside:
        return f"{path}.{rest.rpartition('.')[0]}"
    path, _, own = name.rpartition(".")
    return f"{path}.weight" if own in COMPUTED_FROM else name


def _refuse_unmaskable(name: str, parameter: nn.Parameter, module: nn.Module) -> None:
    """Raise :class:`ValueError` if zeros of ``parameter`` are no zeros of what is computed."""
    if not is_matrix(parameter):
        raise ValueError(
            f"sparse selects {name!r} of shape {tuple(parameter.shape)}, which can't be sparse: "
            "only parameters can of which two or more dimensions have more than one entry."
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        raise ValueError(
            f"sparse selects {name!r}, an embedding with sparse=True, whose gradient has a sparse "
            "layout; masks need dense gradients: make the embedding with sparse=False."
        )
    if isinstance(module, ParametrizationList):
        others = [type(one).__name__ for one in module if not isinstance(one, KEEPS_ZEROS)]
        if others:
            raise ValueError(
                f"sparse selects {name!r}, from which {', '.join(others)} computes the weight "
                f"{written_name(name)!r}: zeros of the one are no "
                "zeros of the other. They are under weight_norm and spectral_norm."
            )


def _matches_nothing(model: nn.Module, selector: object) -> ValueError:
    if isinstance(selector, str):
        modules = (canonical_name(name) for name, _ in model.named_modules() if name)
        names = {written_name(name) for name, *_ in _owned(model)}
        return unknown_name("the name in sparse", selector, {*modules, *names})
    return ValueError(
        f"sparse[{_shown(selector)}] selects nothing: model={type(model).__name__}(...) has no "
        "parameter of it."
    )


def _shown(selector: object) -> str:
    if isinstance(selector, nn.Parameter):
        return f"a parameter of shape {tuple(selector.shape)}"
    return type(selector).__name__ if isinstance(selector, nn.Module) else repr(selector)


def stacked_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return of how many matrices each weight is made that is a stack of them.

    The gates of an LSTM, GRU or RNN cell, and experts: a parameter of three dimensions of a module
    that is no convolution.

    Example:
        >>> lstm = nn.LSTM(8, 16)
        >>> stacked_matrices(lstm)[lstm.weight_hh_l0]
        4
    """
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name.startswith("weight_"):
                # A projection (weight_hr) is one matrix.
                rows = module.hidden_size
                if parameter.shape[0] % rows == 0 and not name.startswith("weight_hr"):
                    found[parameter] = parameter.shape[0] // rows
            elif parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                found[parameter] = parameter.shape[0]
    return {parameter: count for parameter, count in found.items() if count > 1}
