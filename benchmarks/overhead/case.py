"""One measurement: from its model and inner optimizer to the contenders that take part."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.overhead.contenders import (
    AGAIN,
    OURS,
    PLAIN,
    REFERENCE,
    Contender,
    Sparsity,
    Wrapped,
)
from benchmarks.overhead.peers import PEERS
from benchmarks.overhead.workloads import WORKLOADS, Workload

#: Makes a contender of a model, the inner optimizer's name and the sparsity.
Maker = Callable[[nn.Module, str, Sparsity], Contender]
#: All that a user can choose from; the plain optimizer, twice, is always there.
CHOICES: dict[str, Maker] = {
    **{name: partial(Wrapped, state=state) for name, state in OURS.items()},
    **PEERS,
}
_ALWAYS: dict[str, Maker] = {
    PLAIN: Contender,
    AGAIN: Contender,
    REFERENCE: lambda model, _, sparsity: Contender(model, REFERENCE, sparsity),
}


@dataclass(frozen=True)
class Case:
    """Model and inner optimizer by name, beside whom they are measured, and how often."""

    workload: str
    density: float
    optimizer: str
    contenders: Sequence[str]
    update_every: int
    rounds: int
    training_rounds: int
    device: torch.device

    @property
    def about(self) -> Workload:
        """The model's description."""
        return WORKLOADS[self.workload]

    def repeated(self, rounds: int) -> int:
        """Return a number of rounds, more of them for a model whose steps take no time."""
        return rounds * self.about.repeats

    def build_model(self) -> nn.Module:
        """Make the model, with the same weights at each call."""
        torch.manual_seed(0)
        return self.about.build().to(self.device)

    def line_up(
        self, names: Sequence[str], update_every: int
    ) -> tuple[dict[str, Contender], dict[str, str]]:
        """Make the plain contenders, and of ``names`` those that can take part.

        Returns:
            The contenders by name, each with a copy of the model, and why others are absent.
        """
        # Those of the last case may be in cycles, and are large.
        gc.collect()
        model, makers = self.build_model(), {**_ALWAYS, **CHOICES}
        wanted = [PLAIN, AGAIN, *names]
        if self.optimizer != REFERENCE:
            wanted.append(REFERENCE)
        contenders, absent = {}, {}
        for name in wanted:
            try:
                contenders[name] = makers[name](
                    copy.deepcopy(model), self.optimizer, Sparsity(self.density, update_every)
                )
            except ImportError as error:
                absent[name] = str(error)
        return contenders, absent
