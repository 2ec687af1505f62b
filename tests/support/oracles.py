"""Makes the oracle for the arguments of a `SparseOptimizer`."""

from torch import nn

from tests import oracle
from tests.support.nets import SPARSE_NAMES

REDISTRIBUTED = {
    "snfs": oracle.SNFSOracle,
    "rigl-sg": oracle.RigLSGOracle,
    "rigl-sm": oracle.RigLSMOracle,
}


def oracle_for(
    method: str,
    model: nn.Module,
    *,
    density: float,
    total_steps: int,
    delta_t: int,
    seed: int,
    init: str = "erk",
    alpha: float = 0.3,
    regrow: str = "keep",
    scope: str = "global",
    gamma: float | None = 0.3,
    names: tuple[str, ...] = SPARSE_NAMES,
) -> oracle.StaticOracle | oracle.PruningOracle:
    """An oracle over the layers `names` of the model, in that order."""
    params = dict(model.named_parameters())
    shapes = [tuple(params[name].shape) for name in names]
    numels = [params[name].numel() for name in names]
    spread = {
        "erk": oracle.erk_densities,
        "er": oracle.er_densities,
        "uniform": oracle.uniform_densities,
    }[init]
    counts = oracle.live_counts(shapes, spread(shapes, density))
    t_end = oracle.default_t_end(total_steps)

    if method == "pruning":
        return oracle.PruningOracle(
            dict(zip(names, numels, strict=True)),
            dict(zip(names, counts, strict=True)),
            delta_t=delta_t,
            t_start=int(0.008 * total_steps),
            t_end=t_end,
            scope=scope,
        )

    generator = oracle.generator_of(seed)
    schedule = {"delta_t": delta_t, "t_end": t_end, "alpha": alpha, "regrow": regrow}
    if method == "srigl":
        fan_ins = map(oracle.constant_fan_in, shapes, counts)
        chosen = oracle.masks_of_constant_fan_in(shapes, list(fan_ins), generator)
        masks = dict(zip(names, chosen, strict=True))
        return oracle.SRigLOracle(masks, dict(zip(names, shapes, strict=True)), gamma, **schedule)
    masks = dict(zip(names, oracle.random_masks(numels, counts, generator), strict=True))
    if method == "static":
        return oracle.StaticOracle(masks)
    if method == "set":
        return oracle.SETOracle(masks, generator=generator, **schedule)
    if method in REDISTRIBUTED:
        del schedule["regrow"]
        return REDISTRIBUTED[method](masks, **schedule)
    return oracle.RigLOracle(masks, **schedule)
