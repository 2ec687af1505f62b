"""Live weights that move between layers (SNFS, RigL-SG, RigL-SM); growth by many gradients."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from tests.oracle.methods import LayerUpdate, RigLOracle, _DropGrowOracle, exchange
from tests.oracle.schedules import cosine_fraction, is_update_step


def water_level(total: int, shares: Sequence[float], room: Sequence[int]) -> list[int]:
    """Parts min(room, level * share) that add up to `total`, rounded by largest remainder.

    In exact fractions, and by looking for the level at which the parts are right, not by passing
    overflow on.
    """
    wanted = [Fraction(share) for share in shares]
    takers = [i for i in range(len(room)) if wanted[i] > 0]
    if sum(room[i] for i in takers) < total:
        rest = total - sum(room[i] for i in takers)
        others = [i for i in range(len(room)) if wanted[i] <= 0]
        shared = water_level(rest, [room[i] for i in others], [room[i] for i in others])
        filled = dict(zip(others, shared, strict=True))
        return [filled.get(i, room[i]) for i in range(len(room))]
    parts = [Fraction(0)] * len(room)
    for i in sorted(takers, key=lambda i: room[i] / wanted[i]):
        thirstier = [j for j in takers if room[j] / wanted[j] >= room[i] / wanted[i]]
        spent = sum(room[j] for j in takers if j not in thirstier)
        level = Fraction(total - spent) / sum(wanted[j] for j in thirstier)
        if level * wanted[i] < room[i]:
            for j in takers:
                parts[j] = level * wanted[j] if j in thirstier else Fraction(room[j])
            break
        parts[i] = Fraction(room[i])
    whole = [int(part) for part in parts]
    order = sorted(range(len(room)), key=lambda i: (whole[i] - parts[i], i))
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return whole


class Momentum:
    """m <- beta m + (1 - beta) g, in single precision, from zero."""

    def __init__(self, beta: float = 0.9):
        self.beta, self.m = beta, {}

    def feed(self, gradients: Mapping[str, np.ndarray | None]) -> None:
        if any(g is not None and not np.isfinite(g).all() for g in gradients.values()):
            return
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            single = gradient.astype(np.float32)
            held = self.m.get(name, np.zeros_like(single))
            self.m[name] = held * np.float32(self.beta) + single * np.float32(1 - self.beta)


class _Redistributed(_DropGrowOracle):
    """Each layer drops its own weights; `importance` decides the shares of growth."""

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        if any(g is not None and not np.isfinite(g).all() for g in gradients.values()):
            return {}
        self.observe(t, gradients)
        names = [
            name
            for name in self.masks
            if name not in self.always_dense and self.takes_part(gradients[name])
        ]
        live = {name: int(self.masks[name].sum()) for name in names}
        fraction = cosine_fraction(self.alpha, t, self.t_end)
        drops = {name: min(int(fraction * live[name]), live[name] - 1) for name in names}
        room = [len(self.masks[name]) - live[name] + drops[name] for name in names]
        shares = [self.importance(name, gradients[name]) for name in names]
        grows = water_level(sum(drops.values()), shares, room)
        updates = {
            name: exchange(
                self.masks[name],
                np.abs(weights[name]),
                self.scores(name, gradients[name]),
                drops[name],
                grow,
            )
            for name, grow in zip(names, grows, strict=True)
        }
        for name, update in updates.items():
            self.masks[name] = update.mask
        return updates

    def __init__(self, masks: Mapping[str, np.ndarray], **schedule: object):
        super().__init__(masks, **schedule)
        self.always_dense = {name for name, mask in masks.items() if mask.all()}

    def is_update(self, t: int) -> bool:
        return is_update_step(t, self.delta_t, self.t_end)

    def scores(self, name: str, gradient: np.ndarray) -> np.ndarray:
        return np.abs(gradient)

    def importance(self, name: str, gradient: np.ndarray) -> float:
        raise NotImplementedError


class SNFSOracle(_Redistributed):
    """Dettmers & Zettlemoyer 2019, algorithm 1: the momentum is of dense gradients."""

    def __init__(self, masks: Mapping[str, np.ndarray], **schedule: object):
        super().__init__(masks, **schedule)
        self.momentum = Momentum()

    def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
        self.momentum.feed(gradients)

    def scores(self, name: str, gradient: np.ndarray) -> np.ndarray:
        return np.abs(self.momentum.m[name])

    def importance(self, name: str, gradient: np.ndarray) -> float:
        return float(np.abs(self.momentum.m[name][self.masks[name]]).mean(dtype=np.float32))


class RigLSGOracle(_Redistributed):
    """Shares by the mean gradient magnitude of live weights."""

    def importance(self, name: str, gradient: np.ndarray) -> float:
        live = np.abs(gradient[self.masks[name]]).astype(np.float32)
        return float(live.mean(dtype=np.float32))


class RigLSMOracle(SNFSOracle):
    """Grows by gradient; shares by the momentum of the gradients that live weights had."""

    def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
        self.momentum.feed(
            {
                name: None if g is None else np.where(self.masks[name], g, 0.0)
                for name, g in gradients.items()
            }
        )

    def scores(self, name: str, gradient: np.ndarray) -> np.ndarray:
        return np.abs(gradient)


class AccumulatedRigLOracle(RigLOracle):
    """RigL that grows by the sum of the last dense gradients."""

    def __init__(self, masks: Mapping[str, np.ndarray], *, last: int, **schedule: object):
        super().__init__(masks, **schedule)
        self.last, self.seen = last, []

    def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
        self.seen.append(gradients)

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        self.observe(t, gradients)
        grown_by = {
            name: sum(one[name].astype(np.float32) for one in self.seen[-self.last :])
            for name in gradients
        }
        self.seen = []
        return super().update(t, weights, grown_by)


def grow_by_momentum(oracle: _DropGrowOracle, beta: float = 0.9) -> _DropGrowOracle:
    """Return an oracle of a method that grows by gradient, made to grow by their momentum."""

    class Grown(type(oracle)):
        momentum = Momentum(beta)

        def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
            self.momentum.feed(gradients)

        def update(
            self,
            t: int,
            weights: Mapping[str, np.ndarray],
            gradients: Mapping[str, np.ndarray | None],
        ) -> dict[str, LayerUpdate]:
            self.observe(t, gradients)
            return super().update(t, weights, {name: self.momentum.m[name] for name in gradients})

    oracle.__class__ = Grown
    return oracle
