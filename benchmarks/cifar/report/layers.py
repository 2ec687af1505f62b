"""What the runs recorded of their masks: the layers' densities at the end, and every update."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.common.tables import paragraph, table


@dataclass(frozen=True)
class Allocation:
    """One way to spread a density over the layers.

    Attributes:
        variants: Those that end with it. Methods that move weights within layers only share that
            of their distribution.
        densities: Of each layer, mean over the seeds.
    """

    variants: tuple[Variant, ...]
    densities: tuple[float, ...]

    @property
    def title(self) -> str:
        """Such as ``ERK: Static, SET, RigL``, or ``SNFS (ERK)`` of a single one."""
        if len(self.variants) == 1:
            return self.variants[0].title
        methods: dict[str, list[str]] = {}
        for variant in self.variants:
            methods.setdefault(title(variant.init or ""), []).append(title(variant.method))
        return "; ".join(f"{init}: {', '.join(names)}" for init, names in methods.items())


def allocations(group: Group, density: float) -> list[Allocation]:
    """The different allocations of one density, of the runs that recorded theirs."""
    names = layer_names(group, density)
    found: dict[tuple[float, ...], list[Variant]] = {}
    for variant in group.variants:
        recorded = _recorded(group, variant)
        if variant.density == density and recorded:
            shares = tuple(statistics.fmean(run[name] for run in recorded) for name in names)
            found.setdefault(shares, []).append(variant)
    return [Allocation(tuple(variants), shares) for shares, variants in found.items()]


def layer_names(group: Group, density: float) -> list[str]:
    """The layers in the order of ``Allocation.densities``; empty where none are recorded.

    Methods that drop channels have masks for vectors too, which no other method has: only what
    all have is compared.
    """
    runs = [
        run
        for variant in group.variants
        if variant.density == density
        for run in _recorded(group, variant)
    ]
    return [name for name in runs[0] if all(name in run for run in runs)] if runs else []


def _recorded(group: Group, variant: Variant) -> list[dict[str, float]]:
    """Densities by layer, of each run that recorded them."""
    return [
        {layer["name"]: layer["live"] / layer["numel"] for layer in run["layers"]}
        for run in group.runs(variant).values()
        if run.get("layers")
    ]


def histories(group: Group, variant: Variant) -> list[list[dict[str, float]]]:
    """The updates of each run that recorded any, as fields of ``sparseopt.UpdateRecord``."""
    return [run["history"] for run in group.runs(variant).values() if run.get("history")]


def layer_table(group: Group, density: float) -> list[str]:
    """A row for each layer and a column for each allocation."""
    found = allocations(group, density)
    rows = [
        [
            f"`{name.removesuffix('.weight')}`",
            *(f"{allocation.densities[index]:.3f}" for allocation in found),
        ]
        for index, name in enumerate(layer_names(group, density))
    ]
    return table(["layer", *(allocation.title for allocation in found)], rows)


def not_recorded(group: Group, what: str) -> list[str]:
    """A sentence that names the variants none of whose runs has recorded this, if there are any.

    Args:
        group: The results.
        what: ``"layers"`` or ``"history"``.
    """
    # A result with None in this place had nothing to record; an old one has no such place.
    lacking = [
        variant
        for variant, runs in group.variants.items()
        if variant.init is not None and not any(what in run for run in runs.values())
    ]
    return paragraph(f"Not recorded for {_listed(lacking)}.") if lacking else []


def densities(group: Group) -> list[float]:
    """The densities at which masks can be compared: those of several variants with masks, or all.

    A study of one method at densities of its own would fill the report with figures of one line.
    """
    counts = Counter(v.density for v in group.variants if v.density and v.init is not None)
    several = sorted(density for density, count in counts.items() if count > 1)
    return several or sorted(counts)


def _listed(variants: Iterable[Variant]) -> str:
    return ", ".join(f"{variant.title} {variant.density:.3g}" for variant in variants)
