"""The report of a speed-up."""

from __future__ import annotations

from collections.abc import Sequence

from sparseopt.speedup.live_training.measurement import Measured, TimedLayer
from sparseopt.speedup.live_training.plan import DENSE, Plan

__all__ = ["report_text"]

#: How many operations are named, the longest first.
_MOST_OPERATIONS = 12
#: Readable names of the kernels' own operations.
_OWN = {
    "_conv2d": "convolutions by kernels, forward",
    "_conv2dBackward": "convolutions by kernels, backward",
    "_linear": "linear layers by kernels, forward",
    "_linearBackward": "linear layers by kernels, backward",
    "_BatchNorm": "normalisation by a kernel, forward",
    "_BatchNormBackward": "normalisation by a kernel, backward",
    "_ReluOfNormalised": "ReLU of normalised maps, forward",
    "_ReluOfNormalisedBackward": "ReLU and normalisation by a kernel, backward",
    "_LiveValues": "gathering live weights",
    "_LiveValuesBackward": "scattering their gradients",
}
_HEADER = ("layer", "input", "density", "dense ms", "other ms", "chosen", "why")


def report_text(
    status: str, plan: Plan, measured: Sequence[Measured], unknown: Sequence[str] = ()
) -> str:
    """Return the report: the status, the times of full passes, a table by layer, and the rest.

    Args:
        status: the status, one sentence.
        plan: the present plan.
        measured: the measurements that led to it; empty if the user passed the plan.
        unknown: names of sparse weights that no kernel supports.
    """
    parts = [status]
    if unknown:
        parts.append(
            f"no kernel supports the modules of these sparse weights, which run dense: "
            f"{', '.join(unknown)}"
        )
    parts += [_about_model(result) for result in measured if result.model]
    rows = [
        _row(times, plan, _reason(times, plan, result))
        for result in measured
        for times in result.layers
    ]
    if not measured:
        rows = [
            (name, shape, "", "", "", chosen, "the plan that was passed")
            for name, choices in plan.items()
            for shape, chosen in choices.items()
        ]
    if rows:
        parts.append(_table(rows))
    for result in measured:
        parts += _about_rest(result)
    return "\n".join(parts)


def _about_model(measured: Measured) -> str:
    times = ", ".join(
        f"{name} {1e3 * time.median:.4g} ({1e3 * time.q1:.4g} to {1e3 * time.q3:.4g})"
        for name, time in measured.model.items()
    )
    verdict = "nothing is faster" if measured.chosen == DENSE else f"chosen: {measured.chosen}"
    return f"forward and backward pass of the whole model, ms (quartiles): {times}; {verdict}"


def _about_rest(measured: Measured) -> list[str]:
    """Return lines about the longest operations of a pass, and calls that the layout makes slow."""
    lines = []
    total = sum(measured.operations.values())
    largest = list(measured.operations.items())[:_MOST_OPERATIONS]
    if largest:
        named = ", ".join(
            f"{_OWN.get(name, name)} {1e3 * seconds:.3g} ({100 * seconds / total:.0f} %)"
            for name, seconds in largest
        )
        lines.append(f"operations of such a pass, ms: {named}")
    return lines + [f"slow: {call}" for call in measured.slow_calls]


def _row(times: TimedLayer, plan: Plan, why: str) -> tuple[str, ...]:
    others = {name: time for name, time in times.seconds.items() if name != DENSE}
    best = min(others.values()) if others else None
    return (
        times.name or "(the model)",
        times.shape,
        f"{times.density:.3g}",
        f"{1e3 * times.seconds[DENSE]:.3g}" if times.seconds else "",
        "" if best is None else f"{1e3 * best:.3g}",
        plan.get(times.name, {}).get(times.shape, DENSE),
        why,
    )


def _reason(times: TimedLayer, plan: Plan, measured: Measured) -> str:
    """Return the reason why an implementation was chosen for a layer."""
    chosen = plan.get(times.name, {}).get(times.shape, DENSE)
    if not times.seconds:
        return "every weight is live"
    if chosen == DENSE and not measured.model:
        return "no layer is faster"
    if chosen == DENSE:
        return "not faster here, or not as part of the model"
    if chosen == "live":
        return "live weights only"
    return "the fastest for all weights in the kernels' layout"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [_HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
