"""What ``condense`` tells: the whole model's times, cheap ways first, then layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparseopt.speedup.inference.dense_ways import AS_IT_IS
from sparseopt.speedup.timing import Timing

__all__ = ["CondensationReport", "LayerTimes"]


@dataclass(frozen=True)
class LayerTimes:
    """What one layer takes, in every way.

    Attributes:
        name: path of the module.
        density: live weights over all weights.
        shape: of its input: ``"1x64x56x56"``.
        seconds: by way: ``"dense"``, ``"live"`` (live weights only), and of a dense convolution
            ``"full"`` (all weights, by the kernels); empty if it has no choice.
        chosen: the way that was chosen.
        obstacle: why it stays dense whatever is faster, or ``None``.

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
        """Time of the dense way over the time of the chosen one; 1 if there is no choice."""
        return self.seconds["dense"] / self.seconds[self.chosen] if self.seconds else 1.0

    def __str__(self) -> str:
        start = f"{self.name or '(the model)'}: density {self.density:.3g}, {self.shape}: "
        times = ", ".join(f"{way} {1e6 * time:.1f} us" for way, time in self.seconds.items())
        reason = "" if self.obstacle is None else f", since {self.obstacle}"
        return f"{start}{self.chosen}{reason}" + (f" ({times})" if times else "")


@dataclass(frozen=True)
class CondensationReport:
    """What was timed and chosen.

    Attributes:
        chosen: the way of the model that is handed over.
        precision: the number format that it computes in.
        times: the whole model's time in each way, by ``"way, number format"``.
        layers: each layer's times (:class:`LayerTimes`), in the model's order.
        failed: ways that this model or machine does not have, and why.

    Example:
        >>> from sparseopt import CondensationReport
        >>> from sparseopt.speedup.timing import Timing
        >>> times = {"as it is, float32": Timing((2.0,)), "sparse, float32": Timing((1.0,))}
        >>> print(CondensationReport("sparse", "float32", times, [], {}))
        handed over: sparse, float32: 1000 ms, 2.00 x the speed of the fastest dense way in float32
        sparse, float32: 1000 ms (1000 to 1000), 2.00 x
        as it is, float32: 2000 ms (2000 to 2000)
    """

    chosen: str
    precision: str
    times: Mapping[str, Timing]
    layers: list[LayerTimes]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The entry of ``times`` that is handed over."""
        return f"{self.chosen}, {self.precision}"

    @property
    def fastest(self) -> str:
        """The fastest entry of ``times``, whatever its number format."""
        return min(self.times, key=lambda name: self.times[name].median)

    def fastest_dense(self, precision: str) -> str:
        """Return the fastest entry of ``times`` in a number format that is not sparse."""
        dense = [
            name
            for name in self.times
            if name.endswith(f", {precision}") and not name.startswith("sparse")
        ]
        return min(dense, key=lambda name: self.times[name].median)

    @property
    def speed_up(self) -> float:
        """Time of the fastest dense way in the precision, over the time of what is handed over."""
        dense = self.times[self.fastest_dense(self.precision)]
        return dense.median / self.times[self.key].median

    def __str__(self) -> str:
        own = self.times[self.key]
        lines = []
        fastest = self.times[self.fastest]
        if self.fastest != self.key and fastest.over(own).q3 < 1:
            lines.append(
                f"first of all: {self.fastest} takes {fastest.median / own.median:.2f} of the "
                "time; precision='fastest' hands it over"
            )
        lines.append(
            f"handed over: {self.key}: {1e3 * own.median:.4g} ms, {self.speed_up:.2f} x the speed "
            f"of the fastest dense way in {self.precision}"
        )
        base = self.times.get(f"{AS_IT_IS}, {self.precision}", own)
        for name, time in sorted(self.times.items(), key=lambda item: item[1].median):
            faster = base.median / time.median
            ratio = "" if time is base else f", {faster:.2f} x"
            lines.append(
                f"{name}: {1e3 * time.median:.4g} ms "
                f"({1e3 * time.q1:.4g} to {1e3 * time.q3:.4g}){ratio}"
            )
        lines += [f"without {name}: {why}" for name, why in self.failed.items()]
        lines += [str(layer) for layer in self.layers]
        return "\n".join(lines)
