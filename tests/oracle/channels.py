"""RigL on entire channels, from a table of what each channel owns that somebody wrote by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.oracle.schedules import cosine_fraction
from tests.oracle.selection import among


@dataclass(frozen=True)
class Owned:
    """What the channels of one kind, or neurons or heads, own.

    Attributes:
        channels: How many there are.
        makers: Weights whose rows make them.
        scales: Vectors that their values are multiplied by.
        vectors: All vectors with one entry a channel, the scales among them.
        readers: Weights that have columns for them, and how many columns for each.
        width: How many rows of each maker, and entries of each vector, one of them has.
    """

    channels: int
    makers: tuple[str, ...]
    scales: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    readers: dict[str, int] = field(default_factory=dict)
    width: int = 1

    def rows(self, channel: int) -> slice:
        return slice(channel * self.width, (channel + 1) * self.width)


class ChannelOracle:
    """Which channels are live, and what follows for every parameter.

    Args:
        owned: By kind of channel, what it owns.
        live: By kind, which channels are live at the start.
        shapes: The shapes of all parameters that channels own a part of.
    """

    def __init__(
        self,
        owned: Mapping[str, Owned],
        live: Mapping[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        delta_t: int,
        t_end: int,
        alpha: float,
        regrow: str = "keep",
    ):
        self.owned, self.live, self.shapes = owned, dict(live), shapes
        self.delta_t, self.t_end, self.alpha, self.regrow = delta_t, t_end, alpha, regrow
        self.ever = {kind: channels.copy() for kind, channels in live.items()}

    def is_update(self, t: int) -> bool:
        return t % self.delta_t == 0 and t < self.t_end

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The mask of every parameter, of its shape: what no dropped channel owns a part of."""
        masks = {name: np.ones(shape, dtype=bool) for name, shape in self.shapes.items()}
        for kind, owned in self.owned.items():
            for channel in np.flatnonzero(~self.live[kind]):
                for name in (*owned.makers, *owned.vectors):
                    masks[name][owned.rows(channel)] = False
                for name, columns in owned.readers.items():
                    masks[name][:, channel * columns : (channel + 1) * columns] = False
        return masks

    def update(
        self, t: int, weights: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]
    ) -> None:
        """Drop and grow.

        Args:
            t: The step.
            weights: The parameters in their shapes, as they were in the forward pass.
            gradients: Their gradients.
        """
        for kind, owned in self.owned.items():
            live = self.live[kind]
            count = int(cosine_fraction(self.alpha, t, self.t_end) * int(live.sum()))
            if self.regrow == "never":
                count = min(count, int((~live).sum()))
            size = self._read(owned, weights) * self._made(owned, weights)
            survivors = live & ~among(live, size, count, smallest_first=True)
            free = ~(live if self.regrow == "never" else survivors)
            pull = self._read(owned, gradients)
            self.live[kind] = survivors | among(free, pull, count, smallest_first=False)
            self.ever[kind] |= self.live[kind]

    @staticmethod
    def _read(owned: Owned, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        total = np.zeros(owned.channels)
        for name, columns in owned.readers.items():
            for channel in range(owned.channels):
                part = tensors[name][:, channel * columns : (channel + 1) * columns]
                total[channel] += np.abs(part).sum()
        return total

    @staticmethod
    def _made(owned: Owned, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        names = owned.scales or owned.makers
        return np.array(
            [
                sum(np.abs(weights[name][owned.rows(channel)]).sum() for name in names)
                for channel in range(owned.channels)
            ]
        )
