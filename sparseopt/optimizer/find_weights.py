"""Finds the parameters of an optimizer that become sparse layers, and logs about the others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from sparseopt.masks.maskable_weights import (
    computed_weights,
    embedding_weights,
    has_shape,
    is_matrix,
    model_weights,
    optimizer_weights,
    refuse_unusable,
    standardised_weights,
)
from sparseopt.masks.selection import (
    Selection,
    refuse_unmaskable,
    select,
    uses_of_parameters,
)
from sparseopt.utils.names import written_name
from sparseopt.utils.validation import check_density
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "find_weights",
    "note_computed",
    "note_selected_elsewhere",
    "note_what_stays_dense",
    "refuse_flat_parameters",
    "why_nothing",
]

logger = logging.getLogger("sparseopt")

#: FSDP of the first kind, by name, so that nothing has to be imported.
FSDP1: Final = "FullyShardedDataParallel"
#: Attributes that FSDP of the first kind sets on its flat parameters and on their pieces.
FLAT_MARKS: Final = ("_is_flat_param", "_fsdp_flattened")
#: How many names a log line or an error lists.
MOST_NAMES: Final = 5


def find_weights(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    sparse: Selection | None = None,
    *,
    only_known: bool = False,
    must_match: bool = True,
) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    """Return the weights that can be sparse, by name, and the densities that groups give some.

    With a model these are the weights of known modules, the matrices in param groups with a
    ``density``, and the parameters that the user selects.

    Args:
        groups: the param groups.
        model: the model, if there is one.
        sparse: the user's selection of sparse and dense parameters.
        only_known: whether matrices of other modules stay dense in any case.
        must_match: whether a selector that matches nothing is an error.

    Raises:
        TypeError: if a weight is of a kind that can't be masked.
        ValueError: if a group has a density but no parameter that can be sparse; if a density, a
            name or a selector is wrong; or if a parameter that is selected, or is in a group with a
            density, cannot be sparse.
    """
    selected: dict[nn.Parameter, bool] = {}
    also: list[nn.Parameter] = []
    if model is None:
        candidates = optimizer_weights(groups)
    else:
        selected = {} if sparse is None else select(model, sparse, must_match=must_match)
        also = [] if only_known else _asked_for(groups, model)
        candidates = model_weights(model, [*also, *(p for p, yes in selected.items() if yes)])
        _refuse_unfit_selection(groups, model, selected, only_known=only_known)
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    weights: dict[str, nn.Parameter] = {}
    overrides: dict[str, float] = {}
    for parameter, name in candidates.items():
        group = group_of.get(parameter)
        if group is None or not parameter.requires_grad or group.get("density") is False:
            continue
        if not selected.get(parameter, True):
            continue
        refuse_unusable(name, parameter)
        weights[name] = parameter
        if _asks(group):
            overrides[name] = check_density("density of a param group", group["density"])
    if model is not None:
        _refuse_unmaskable_of_groups(model, set(also) & set(weights.values()))
    _refuse_densities_without_weights(groups, set(weights.values()), model)
    return weights, overrides


def why_nothing(model: nn.Module | None) -> str:
    """Return the message for an optimizer without a parameter that can be sparse."""
    if model is None:
        return (
            "no parameter of the optimizer can be sparse: a sparse parameter must be trainable, "
            "have two or more dimensions of more than one entry, and be in a param group without "
            "density=False."
        )
    nothing = "no parameter of the optimizer can be sparse"
    if computed := computed_weights(model):
        return f"{nothing}: {_about_computed(computed)}"
    if standardised := standardised_weights(model):
        return f"{nothing}: {_about_standardised(standardised)}"
    return (
        f"no parameter of the optimizer is a trainable weight of a convolution or linear layer of "
        f"model={type(model).__name__}(...) in a param group without density=False. Was the "
        "optimizer made from this model's parameters?"
    )


def note_what_stays_dense(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    sparse: Collection[nn.Parameter],
    selected: Mapping[nn.Parameter, bool],
) -> None:
    """Log which weights stay dense although a user may expect them to be sparse, and what to do.

    Args:
        groups: the param groups to check.
        model: the model, if there is one.
        sparse: the weights that are sparse.
        selected: the user's selection: whether each parameter shall be sparse.
    """
    sparse = set(sparse)
    known = optimizer_weights(groups) if model is None else model_weights(model)
    wanted = [parameter for parameter, yes in selected.items() if yes]
    names = known if model is None else model_weights(model, wanted)
    frozen = [
        names[parameter]
        for group in groups
        if group.get("density") is not False
        for parameter in group["params"]
        if parameter in names and not parameter.requires_grad and selected.get(parameter, True)
    ]
    if frozen:
        logger.warning(
            "%s frozen now and will stay dense, even if trained later: make a new SparseOptimizer "
            "when you unfreeze them, or make this one while the weights are trainable.",
            _listed(frozen, "is", "are"),
        )
    if model is None:
        return
    names = _names_in(model)
    embeddings = embedding_weights(model)
    asked_for = [p for group in groups if _asks(group) for p in group["params"] if p in names]
    left_dense = (p for p in asked_for if p in embeddings and p not in sparse)
    if dense := [names[p] for p in left_dense if p.requires_grad]:
        logger.warning(
            "%s dense, although a param group asks for a density: embeddings are sparse only where "
            "sparse= selects them.",
            _listed(dense, "stays", "stay"),
        )
    if asked := [names[p] for p in asked_for if p in sparse and p not in known]:
        logger.warning(
            "%s sparse because a param group asks for a density, although modules of this kind "
            "are not made sparse by default: put weights that should be dense into a param group "
            "with density=False.",
            _listed(asked, "is", "are"),
        )
    _note_little_covered(groups, model, sparse)


def note_selected_elsewhere(
    groups: list[dict[str, Any]], model: nn.Module, selected: Mapping[nn.Parameter, bool]
) -> None:
    """Log which weights are selected to be sparse but are in no param group."""
    trained = {parameter for group in groups for parameter in group["params"]}
    names = _names_in(model)
    if elsewhere := [names[p] for p, yes in selected.items() if yes and p not in trained]:
        logger.warning(
            "sparse= selects weights that are in no param group: %s dense, unless "
            "add_param_group() adds them.",
            _listed(elsewhere, "stays", "stay"),
        )


def note_computed(model: nn.Module, sparse: Collection[str]) -> None:
    """Log which linear maps of ``model`` stay dense because they compute their weight.

    Args:
        model: the model.
        sparse: names of the parameters that are sparse.
    """
    masked = {written_name(name) for name in sparse}
    computed = {name: how for name, how in computed_weights(model).items() if name not in masked}
    if computed:
        logger.warning("some weights stay dense: %s", _about_computed(computed))
    if standardised := standardised_weights(model):
        logger.warning("some weights stay dense: %s", _about_standardised(standardised))


def refuse_flat_parameters(optimizer: Optimizer, model: nn.Module | None) -> None:
    """Raise :class:`TypeError` for FSDP of the first kind, which splits flattened parameters."""
    modules = () if model is None else model.modules()
    flat = any(
        any(hasattr(parameter, mark) for mark in FLAT_MARKS)
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    if flat or any(type(module).__name__ == FSDP1 for module in modules):
        raise TypeError(
            f"the model is wrapped by {FSDP1} (FSDP of the first kind), whose parameters are "
            "pieces of flat tensors, so that no rank has a layer's shape. Use fully_shard "
            "(FSDP2; fsdp_version=2 in Accelerate) or DistributedDataParallel."
        )


def _refuse_unfit_selection(
    groups: list[dict[str, Any]],
    model: nn.Module,
    selected: Mapping[nn.Parameter, bool],
    *,
    only_known: bool,
) -> None:
    """Raise :class:`ValueError` if a param group or the method forbids a selected weight."""
    names = _names_in(model)
    known = set(model_weights(model))
    dense = {p for group in groups if group.get("density") is False for p in group["params"]}
    for parameter, wanted in selected.items():
        if wanted and parameter in dense:
            raise ValueError(
                f"sparse selects {names[parameter]!r}, whose param group has density=False: remove "
                "one of the two."
            )
        if wanted and only_known and parameter not in known:
            raise ValueError(
                f"sparse selects {names[parameter]!r}, but the method drops entire channels, and "
                "finds them only in convolutions and linear layers."
            )


def _refuse_unmaskable_of_groups(model: nn.Module, asked: Collection[nn.Parameter]) -> None:
    """Raise :class:`ValueError` if a group asks for a density of a weight that can't be masked."""
    uses = uses_of_parameters(model) if asked else {}
    for parameter in asked:
        refuse_unmaskable(parameter, uses[parameter], "a param group asks for a density of")


def _asks(group: Mapping[str, Any]) -> bool:
    density = group.get("density")
    return density is not None and density is not False


def _asked_for(groups: Iterable[Mapping[str, Any]], model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of groups that ask for a density, of any module but embeddings."""
    embeddings = embedding_weights(model)
    return [
        parameter
        for group in groups
        if _asks(group)
        for parameter in group["params"]
        if has_shape(parameter) and is_matrix(parameter) and parameter not in embeddings
    ]


def _refuse_densities_without_weights(
    groups: list[dict[str, Any]], sparse: Collection[nn.Parameter], model: nn.Module | None
) -> None:
    """Raise :class:`ValueError` if a group has a density but no parameter that can be sparse."""
    names = {} if model is None else _names_in(model)
    for number, group in enumerate(groups):
        trainable = [p for p in group["params"] if p.requires_grad]
        if not _asks(group) or not trainable or any(p in sparse for p in trainable):
            continue
        called = [names.get(p, f"{number}.{index}") for index, p in enumerate(group["params"])]
        raise ValueError(
            f"param group {number} asks for density={group['density']}, but none of its "
            f"parameters can be sparse ({_shortened(called)}): a sparse parameter must be "
            "trainable, have two or more dimensions, belong to the model, and not be the weight of "
            "an embedding. Remove density= from the group, or write density=False."
        )


def _note_little_covered(
    groups: list[dict[str, Any]], model: nn.Module, sparse: Collection[nn.Parameter]
) -> None:
    """Log if sparse layers have less than half of the trained parameters, and name the others.

    Param groups with ``density=False`` are not counted.
    """
    trained = {
        parameter
        for group in groups
        if group.get("density") is not False
        for parameter in group["params"]
        if parameter.requires_grad and has_shape(parameter)
    }
    total = sum(parameter.numel() for parameter in trained)
    covered = sum(parameter.numel() for parameter in sparse)
    if 2 * covered >= total:
        return
    held = []
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p in trained and p not in sparse]
        if size := sum(parameter.numel() for parameter in own):
            held.append((size, f"{canonical_name(path) or 'the model'} ({type(module).__name__})"))
    largest = [f"{name} {size:,}" for size, name in sorted(held, key=lambda item: -item[0])]
    logger.warning(
        "%.0f %% of the %s trained parameters can be sparse. The rest is in %s. sparse= makes more "
        "of them sparse, by name or by the class of their module.",
        100 * covered / total,
        f"{total:,}",
        _shortened(largest),
    )


def _about_computed(computed: Mapping[str, str]) -> str:
    by_kind: dict[str, list[str]] = {}
    for name, kind in computed.items():
        by_kind.setdefault(kind, []).append(name)
    parts = [f"{_listed(names, 'is', 'are')} computed by {kind}" for kind, names in by_kind.items()]
    pruned = [kind for kind in by_kind if kind.startswith("prune")]
    advice = []
    if pruned:
        advice.append(
            "Call torch.nn.utils.prune.remove(module, 'weight') and pass mask='nonzero' to "
            "continue with the weights that prune left."
        )
    if len(pruned) < len(by_kind):
        advice.append(
            "Select them by sparse= to mask the parameters that they are computed from. Under "
            "weight_norm and spectral_norm, zeros of the parameter are zeros of the weight."
        )
    return f"{', '.join(parts)} from other parameters. {' '.join(advice)}"


def _about_standardised(standardised: Mapping[str, str]) -> str:
    kinds = ", ".join(sorted(set(standardised.values())))
    names = _listed(list(standardised), "is", "are")
    return (
        f"{names} standardised by {kinds} in every forward pass, so zeros of the weight are not "
        "zeros of the convolution. Convolutions that don't standardise their weight, such as "
        "torch.nn.Conv2d, can be sparse."
    )


def _names_in(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: canonical_name(name) for name, parameter in model.named_parameters()}


def _listed(names: list[str], one: str, many: str) -> str:
    return f"{_shortened([repr(name) for name in names])} {one if len(names) == 1 else many}"


def _shortened(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
