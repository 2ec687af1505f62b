"""The few forms of Markdown that the report is made of."""

from __future__ import annotations

from benchmarks.cifar.report.summary import Variant, title
from benchmarks.common.tables import MISSING


def names(variant: Variant) -> list[str]:
    """The cells that say which variant a row is about: method, init, density."""
    density = MISSING if variant.density is None else f"{variant.density:.3g}"
    init = MISSING if variant.init is None else title(variant.init)
    changed = "".join(f", {name} {value:.3g}" for name, value in variant.settings)
    return [title(variant.method) + changed, init, density]


def multiple(value: float | None) -> str:
    """A multiple of the dense network's, such as ``0.161x``."""
    return MISSING if value is None else f"{value:.3f}x"
