"""The report of ``condense``: the times of all implementations, then of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparseopt.speedup.inference.dense_implementations import AS_IT_IS
from sparseopt.speedup.timing import Timing

__all__ = ["CondensationReport", "LayerTimes"]


@dataclass(frozen=True)
class LayerTimes:
    """The times of one layer, in each implementation.

    Attributes:
        name: path of the module.
        density: live weights over all weights.
        shape: shape of the input, such as ``"1x64x56x56"``.
        seconds: time by implementation: ``"dense"``; ``"live"`` (live weights only); for a dense
            convolution also ``"full"`` (all weights, by the kernels). Empty if there is only one.
        chosen: the implementation that was chosen.
        obstacle: why the layer has to stay dense, or ``None``.

    Example:
        >>> from sparseopt import LayerTimes
        >>> times = LayerTimes("fc", 0.1, "1x64", {"dense": 2e-5, "live": 1e-5}, "live")
        >>> times.speed_up
        2.0
    """

    name: str
    density: float
    shape: str
    seconds: Mapping[str, float]
    chosen: str
    obstacle: str | None = None

    @property
    def speed_up(self) -> float:
        """Time of the dense layer over the time of the chosen one; 1 if there is no choice."""
        return self.seconds["dense"] / self.seconds[self.chosen] if self.seconds else 1.0

    def __str__(self) -> str:
        start = f"{self.name or '(the model)'}: density {self.density:.3g}, {self.shape}: "
        times = ", ".join(f"{name} {1e6 * time:.1f} us" for name, time in self.seconds.items())
        reason = "" if self.obstacle is None else f", because {self.obstacle}"
        return f"{start}{self.chosen}{reason}" + (f" ({times})" if times else "")


@dataclass(frozen=True)
class CondensationReport:
    """The times of all implementations, and which one was chosen.

    Attributes:
        chosen: the implementation of the model that ``condense`` returned.
        precision: the number format that it computes in.
        times: time of the full model, by ``"implementation, number format"``.
        layers: the times of each layer (:class:`LayerTimes`), in the order of the model.
        failed: for each implementation that this model or machine does not have, the reason.

    Example:
        >>> from sparseopt import CondensationReport
        >>> from sparseopt.speedup.timing import Timing
        >>> times = {"as it is, float32": Timing((2.0,)), "sparse, float32": Timing((1.0,))}
        >>> print(CondensationReport("sparse", "float32", times, [], {}))
        returned: sparse, float32: 1000 ms, 2.00 x as fast as the fastest dense: as it is, float32
        sparse, float32: 1000 ms (1000 to 1000), 2.00 x as it is
        as it is, float32: 2000 ms (2000 to 2000)
    """

    chosen: str
    precision: str
    times: Mapping[str, Timing]
    layers: list[LayerTimes]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key in ``times`` of the returned model."""
        return f"{self.chosen}, {self.precision}"

    @property
    def fastest(self) -> str:
        """The key of the shortest time, in any number format."""
        return min(self.times, key=lambda name: self.times[name].median)

    def fastest_dense(self, precision: str) -> str:
        """Return the key of the fastest dense implementation in one number format."""
        dense = [
            name
            for name in self.times
            if name.endswith(f", {precision}") and not name.startswith("sparse")
        ]
        return min(dense, key=lambda name: self.times[name].median)

    @property
    def speed_up(self) -> float:
        """Time of the fastest dense implementation over the time of the returned model.

        Both compute in the number format of the returned model.
        """
        dense = self.times[self.fastest_dense(self.precision)]
        return dense.median / self.times[self.key].median

    def __str__(self) -> str:
        own = self.times[self.key]
        lines = []
        fastest = self.times[self.fastest]
        if self.fastest != self.key and fastest.over(own).q3 < 1:
            lines.append(
                f"faster than the returned model: {self.fastest} takes "
                f"{fastest.median / own.median:.2f} of its time; precision='fastest' returns it"
            )
        lines.append(
            f"returned: {self.key}: {1e3 * own.median:.4g} ms, {self.speed_up:.2f} x as fast as "
            f"the fastest dense: {self.fastest_dense(self.precision)}"
        )
        base = self.times.get(f"{AS_IT_IS}, {self.precision}", own)
        for name, time in sorted(self.times.items(), key=lambda item: item[1].median):
            faster = base.median / time.median
            ratio = "" if time is base else f", {faster:.2f} x as it is"
            lines.append(
                f"{name}: {1e3 * time.median:.4g} ms "
                f"({1e3 * time.q1:.4g} to {1e3 * time.q3:.4g}){ratio}"
            )
        lines += [f"{name} is not available: {why}" for name, why in self.failed.items()]
        lines += [str(layer) for layer in self.layers]
        return "\n".join(lines)
