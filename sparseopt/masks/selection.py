"""The weights that the user selects with ``sparse=``, beyond those that are sparse by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from sparseopt.masks.maskable_weights import computed_from, has_shape, is_matrix, standardises
from sparseopt.utils.names import is_pattern, means, written_name
from sparseopt.utils.validation import unknown_name
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "Selection",
    "Use",
    "breaks_zeros",
    "check_selection",
    "refuse_unmaskable",
    "select",
    "stacked_matrices",
    "uses_of_parameters",
]

#: What selects weights in a mapping: the name of a parameter or a module, or a pattern of such
#: names (``"encoder.*"``); a class of modules; a module; a parameter.
Selector = str | type[nn.Module] | nn.Module | nn.Parameter
#: A mapping from selectors to whether the selected parameters shall be sparse. Names, modules and
#: parameters override patterns and classes; among selectors of one kind the last one counts.
#: Or a function of a parameter's name, the parameter and its module, which returns None for the
#: default.
Selection = Mapping[Selector, bool] | Callable[[str, nn.Parameter, nn.Module], bool | None]

#: Parametrizations whose weight is zero wherever the parameter that it is computed from is zero.
KEEPS_ZEROS: Final = (_WeightNorm, _SpectralNorm)


def check_selection(sparse: object, model: nn.Module | None) -> None:
    """Raise :class:`TypeError` unless ``sparse`` says which weights of ``model`` are sparse."""
    if sparse is None:
        return
    if model is None:
        raise TypeError(
            "sparse= selects weights by their names and modules, so it needs the model: pass it as "
            "the second argument."
        )
    if isinstance(sparse, type | nn.Module):
        shown = sparse.__name__ if isinstance(sparse, type) else f"{type(sparse).__name__}(...)"
        raise TypeError(
            f"sparse={shown} is one class or module, which would be called as a function: write "
            "it as a mapping, as in {nn.LSTM: True} or {model.encoder: True}."
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


@dataclass(frozen=True)
class Use:
    """One use of a parameter: a module that has it.

    Attributes:
        name: the parameter's name in this module.
        written: the name of the weight that is computed from the parameter, else its own name.
        module: the module.
    """

    name: str
    written: str
    module: nn.Module


def uses_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[Use]]:
    """Return all uses of each parameter of ``model``; the first has the name that torch gives."""
    found: dict[nn.Parameter, list[Use]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        older = computed_from(module)
        for own, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = canonical_name(f"{path}.{own}" if path else own)
            computed = isinstance(module, ParametrizationList) or own == older
            use = Use(name, written_name(name) if computed else name, module)
            found.setdefault(parameter, []).append(use)
    return found


def select(
    model: nn.Module, sparse: Selection, *, must_match: bool = True
) -> dict[nn.Parameter, bool]:
    """Return the parameters of ``model`` that ``sparse`` selects, and whether they shall be sparse.

    A parameter that several modules share is selected by its name in, or the class of, any of them.
    A function is called for each of these modules until it returns a bool.

    Args:
        model: the model.
        sparse: the user's selection.
        must_match: whether a selector that matches nothing is an error. Later, when modules may
            have been replaced, it is not.

    Raises:
        TypeError: if a selector is of no usable type, or a function returns neither a bool nor
            ``None``.
        ValueError: if a selector matches nothing, or only parameters that cannot be sparse, or if
            a parameter that cannot be sparse is selected as sparse.
    """
    uses = uses_of_parameters(model)
    if callable(sparse):
        chosen = _by_function(uses, sparse)
    else:
        chosen = {}
        for selector in sorted(sparse, key=_names_one):
            selected = _selected(model, uses, selector, must_match=must_match)
            chosen.update(dict.fromkeys(selected, sparse[selector]))
    for parameter, wanted in chosen.items():
        if wanted:
            refuse_unmaskable(parameter, uses[parameter], "sparse selects")
    return chosen


def _names_one(selector: object) -> bool:
    """Whether a selector names one thing, so that it overrides patterns and classes."""
    return not isinstance(selector, type) and not (
        isinstance(selector, str) and is_pattern(selector)
    )


def _by_function(
    uses: Mapping[nn.Parameter, Sequence[Use]],
    sparse: Callable[[str, nn.Parameter, nn.Module], bool | None],
) -> dict[nn.Parameter, bool]:
    """Return the choice of the user's function for each parameter, by its first use with one."""
    chosen = {}
    for parameter, its_uses in uses.items():
        for use in its_uses:
            wanted = sparse(use.name, parameter, use.module)
            if wanted is None:
                continue
            if not isinstance(wanted, bool):
                raise TypeError(
                    f"sparse={sparse!r} returned {wanted!r} for {use.name!r}; it must return True, "
                    "False, or None for the default."
                )
            chosen[parameter] = wanted
            break
    return chosen


def _selected(
    model: nn.Module,
    uses: Mapping[nn.Parameter, Sequence[Use]],
    selector: object,
    *,
    must_match: bool,
) -> list[nn.Parameter]:
    """Return the matrices that one selector means."""
    found = _meant(model, uses, selector)
    matrices = [parameter for parameter in found if _may_be_matrix(parameter, uses[parameter])]
    if must_match and not found:
        raise _matches_nothing(model, uses, selector)
    if must_match and not matrices:
        raise ValueError(
            f"sparse[{_shown(selector)}] selects {', '.join(repr(uses[p][0].name) for p in found)}"
            ", which can't be sparse: a sparse parameter must have two or more dimensions of more "
            "than one entry."
        )
    return matrices


def _may_be_matrix(parameter: nn.Parameter, uses: Sequence[Use]) -> bool:
    if not has_shape(parameter):
        # Its shape is not known yet, but a normalisation has one number a channel.
        return not any(isinstance(use.module, _LazyNormBase) for use in uses)
    return is_matrix(parameter)


def _meant(
    model: nn.Module, uses: Mapping[nn.Parameter, Sequence[Use]], selector: object
) -> list[nn.Parameter]:
    """Return the parameters that one selector means, in the model's order."""
    if isinstance(selector, str):
        return [
            parameter
            for parameter, its_uses in uses.items()
            if any(means(selector, use.name) or means(selector, use.written) for use in its_uses)
        ]
    if isinstance(selector, nn.Parameter):
        own = {selector}
    elif isinstance(selector, nn.Module):
        own = set(selector.parameters())
    elif isinstance(selector, type) and issubclass(selector, nn.Module):
        owners = (module for module in model.modules() if isinstance(module, selector))
        own = {parameter for module in owners for parameter in module.parameters()}
    else:
        raise TypeError(
            f"sparse has the key {selector!r}; it takes a name, a pattern, a class of modules, a "
            "module or a parameter."
        )
    return [parameter for parameter in uses if parameter in own]


def refuse_unmaskable(parameter: nn.Parameter, uses: Sequence[Use], request: str) -> None:
    """Raise :class:`ValueError` if ``parameter`` can't be masked, or its zeros would not count.

    Args:
        parameter: the parameter; a lazy parameter, which has no shape yet, is accepted.
        uses: the modules that have it.
        request: how the user asked for it to be sparse: the start of the message.
    """
    name = uses[0].name
    if has_shape(parameter) and not is_matrix(parameter):
        raise ValueError(
            f"{request} {name!r} of shape {tuple(parameter.shape)}, which can't be sparse: a "
            "sparse parameter must have two or more dimensions of more than one entry."
        )
    for use in uses:
        if isinstance(use.module, nn.Embedding | nn.EmbeddingBag) and use.module.sparse:
            raise ValueError(
                f"{request} {name!r}, of an embedding with sparse=True, whose gradient has a "
                "sparse layout; masks need dense gradients: make the embedding with sparse=False."
            )
        if isinstance(use.module, ParametrizationList) and (others := breaks_zeros(use.module)):
            raise ValueError(
                f"{request} {name!r}, from which {', '.join(others)} computes the weight "
                f"{use.written!r}: where the parameter is zero, the weight is not. Under "
                "weight_norm and spectral_norm it is. "
                f"sparse={{{use.written!r}: False}} leaves it dense."
            )
        if standardises(use.module):
            raise ValueError(
                f"{request} {name!r}, which {type(use.module).__name__} standardises in every "
                "forward pass: where the weight is zero, the weight of the convolution is not. "
                f"sparse={{{use.written!r}: False}} leaves it dense."
            )


def breaks_zeros(chain: ParametrizationList) -> list[str]:
    """Return the parametrizations of ``chain`` that may compute a nonzero weight from a zero.

    Example:
        >>> linear = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
        >>> breaks_zeros(linear.parametrizations.weight)
        ['_Orthogonal']
    """
    return [type(step).__name__ for step in chain if not isinstance(step, KEEPS_ZEROS)]


def _matches_nothing(
    model: nn.Module, uses: Mapping[nn.Parameter, Sequence[Use]], selector: object
) -> ValueError:
    if isinstance(selector, str):
        named = {canonical_name(name): one for name, one in model.named_modules() if name}
        if selector in named:
            return ValueError(
                f"sparse={selector!r} selects nothing: the module of this name, a "
                f"{type(named[selector]).__name__}, has no parameters."
            )
        names = (use.written for its_uses in uses.values() for use in its_uses)
        return unknown_name("the name in sparse", selector, {*named, *names})
    return ValueError(
        f"sparse[{_shown(selector)}] selects nothing: model={type(model).__name__}(...) has no "
        "such parameter."
    )


def _shown(selector: object) -> str:
    if isinstance(selector, nn.Parameter):
        return f"a parameter of shape {tuple(selector.shape)}"
    return type(selector).__name__ if isinstance(selector, nn.Module) else repr(selector)


def stacked_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the weights that are a stack of matrices, with the number of matrices in each.

    These are the weights of an LSTM, a GRU or an RNN cell, with one matrix for each gate, and
    parameters of three dimensions of modules that are not convolutions, as experts have.

    Example:
        >>> lstm = nn.LSTM(8, 16)
        >>> stacked_matrices(lstm)[lstm.weight_hh_l0]
        4
    """
    found: dict[nn.Parameter, int] = {}
    for module, name, parameter in _weights_as_written(model):
        if not has_shape(parameter):
            continue
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name.startswith("weight_"):
            # A projection (weight_hr) is one matrix.
            rows = module.hidden_size
            if parameter.shape[0] % rows == 0 and not name.startswith("weight_hr"):
                found[parameter] = parameter.shape[0] // rows
        elif parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
            found[parameter] = parameter.shape[0]
    return {parameter: count for parameter, count in found.items() if count > 1}


def _weights_as_written(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield each parameter with its name in the module that computes with it.

    A parameter of a parametrization counts as one of the module whose weight it computes.
    """
    for module in model.modules():
        if isinstance(module, ParametrizationList):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter
        chains = module.parametrizations if is_parametrized(module) else nn.ModuleDict()
        for name, chain in cast(nn.ModuleDict, chains).items():
            for parameter in chain.parameters(recurse=False):
                yield module, name, parameter
