"""The sweep of learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cifar.report.comparison import difference
from benchmarks.cifar.report.differences import difference_table
from benchmarks.cifar.report.markdown import names
from benchmarks.cifar.report.summary import Group, Variant
from benchmarks.common.tables import MISSING, table


@dataclass(frozen=True)
class Sweep:
    """One variant at several learning rates.

    Attributes:
        variant: It at the protocol's own rate, maybe with its own alpha and delta_t.
        masks: The alpha and delta_t in force.
        by_rate: What was run at each rate, in rising order.
    """

    variant: Variant
    masks: tuple[float, int]
    by_rate: dict[float, Variant]

    @property
    def masks_title(self) -> str:
        return f"({self.masks[0]:.3g}, {self.masks[1]})"


def sweeps(group: Group) -> list[Sweep]:
    """Every variant that was run at another learning rate than the protocol's."""
    own_rate = float(group.settings["optimizer"]["lr"])
    found: dict[Variant, dict[float, Variant]] = {}
    for variant in group.varied:
        rate = variant.setting("lr")
        if rate is not None:
            others = tuple(pair for pair in variant.settings if pair[0] != "lr")
            at_own_rate = Variant(variant.method, variant.init, variant.density, others)
            by_rate = found.setdefault(at_own_rate, {})
            by_rate[rate] = variant
            if group.runs(at_own_rate):
                by_rate[own_rate] = at_own_rate
    swept = [
        Sweep(variant, _masks(group, variant), dict(sorted(by_rate.items())))
        for variant, by_rate in found.items()
    ]
    return sorted(swept, key=lambda sweep: (sweep.variant.plain.order(), sweep.masks))


def sweep_table(group: Group, found: Sequence[Sweep]) -> list[str]:
    """A column for each learning rate."""
    rates = sorted({rate for sweep in found for rate in sweep.by_rate})
    rows = []
    for sweep in found:
        cells = [
            group.statistic(sweep.by_rate[rate], "accuracy", "test").percent()
            if rate in sweep.by_rate
            else MISSING
            for rate in rates
        ]
        rows.append([*names(sweep.variant.plain), sweep.masks_title, *cells])
    own = group.settings["optimizer"]["lr"]
    header = [f"lr {rate:g}" + (" (protocol's)" if rate == own else "") for rate in rates]
    return table(["method", "init", "density", "(alpha, delta_t)", *header], rows)


def sweep_differences(group: Group, found: Sequence[Sweep]) -> list[str]:
    """Every other learning rate against the protocol's own, paired by seed."""
    differences = [
        difference(group, variant, sweep.variant)
        for sweep in found
        for variant in sweep.by_rate.values()
    ]
    rows = difference_table(group, [one for one in differences if one is not None])
    return ["#### Minus the protocol's learning rate", "", *rows] if rows else []


def _masks(group: Group, variant: Variant) -> tuple[float, int]:
    own = group.settings["sparsity"]
    alpha, delta_t = variant.setting("alpha"), variant.setting("delta_t")
    return (
        float(own["alpha"] if alpha is None else alpha),
        int(own["delta_t"] if delta_t is None else delta_t),
    )
