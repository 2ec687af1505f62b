"""One run of a protocol, and the name under which its result is found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.cifar.protocols.methods import RECIPES

if TYPE_CHECKING:
    from benchmarks.cifar.protocols.protocol import Protocol


@dataclass(frozen=True)
class RunSpec:
    """One run of a protocol: which method, at which density, from which seed.

    ``dense`` has neither ``init`` nor ``density``; ``small-dense`` has no ``init``. ``alpha``,
    ``delta_t`` and ``lr`` take the place of the protocol's own where they are given.

    Example:
        >>> RunSpec("rigl", "erk", 0.1, 0).label
        'rigl-erk-0.1-seed0'
        >>> RunSpec("rigl", "erk", 0.1, 0, alpha=0.4, delta_t=200).label
        'rigl-erk-0.1-alpha0.4-dt200-seed0'
    """

    method: str
    init: str | None
    density: float | None
    seed: int
    alpha: float | None = None
    delta_t: int | None = None
    lr: float | None = None

    @property
    def variant(self) -> str:
        """The run without its seed, such as ``rigl-erk-0.1``."""
        parts = [
            self.method,
            self.init,
            None if self.density is None else f"{self.density:g}",
            None if self.alpha is None else f"alpha{self.alpha:g}",
            None if self.delta_t is None else f"dt{self.delta_t}",
            None if self.lr is None else f"lr{self.lr:g}",
        ]
        return "-".join(part for part in parts if part is not None)

    @property
    def label(self) -> str:
        """The run's name, such as ``rigl-erk-0.1-seed0``."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def source(self) -> RunSpec | None:
        """The run whose final masks this one starts with, if there is one."""
        masks_from = RECIPES[self.method].masks_from
        return None if masks_from is None else dataclasses.replace(self, method=masks_from)

    def as_dict(self) -> dict[str, Any]:
        """The fields as the results file has them, without overrides that are not given."""
        fields = dataclasses.asdict(self)
        for name in OVERRIDES:
            if fields[name] is None:
                del fields[name]
        return fields

    def without_defaults(self, protocol: Protocol) -> RunSpec:
        """The same run where ``alpha``, ``delta_t`` or ``lr`` only repeats what the protocol says.

        So a point of a search that is the protocol's own is not run twice.
        """
        own = {
            "alpha": protocol.sparsity.alpha,
            "delta_t": protocol.sparsity.delta_t,
            "lr": protocol.optimizer.lr,
        }
        repeated = {name: None for name, value in own.items() if getattr(self, name) == value}
        return dataclasses.replace(self, **repeated)

    def key(self, protocol: Protocol, data: str) -> str:
        """A name that changes with every setting and with the data, so that no result is mistaken.

        Args:
            protocol: What all runs share.
            data: The fingerprint of the data set.
        """
        settings = {"protocol": protocol.settings(), "run": self.as_dict(), "data": data}
        text = json.dumps(settings, sort_keys=True)
        return f"{self.label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# Left out of the key where they are not given, so that results without them keep their names.
OVERRIDES = ("alpha", "delta_t", "lr")
