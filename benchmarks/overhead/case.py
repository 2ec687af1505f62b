"""One measurement: its model, its inner optimizer and its contenders."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.overhead.contenders import (
    AGAIN,
    OURSELVES,
    PLAIN,
    REFERENCE,
    Contender,
    Sparsity,
    Wrapped,
    WrappedMasked,
)
from benchmarks.overhead.peers import PEERS
from benchmarks.overhead.workloads import WORKLOADS, Workload

#: All contenders that a user can choose; the plain optimizer always takes part, twice.
CHOICES: dict[str, type[Contender]] = {
    OURSELVES: Wrapped,
    "sparseopt, masked": WrappedMasked,
    **PEERS,
}


@dataclass(frozen=True)
class Case:
    """Model, inner optimizer, contenders and number of rounds of one measurement."""

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
        """Return a number of rounds; models with short steps get more rounds."""
        return rounds * self.about.repeats

    def build_model(self) -> nn.Module:
        """Make the model, with the same weights at each call."""
        torch.manual_seed(0)
        return self.about.build().to(self.device)

    def line_up(
        self, names: Sequence[str], update_every: int
    ) -> tuple[dict[str, Contender], dict[str, str]]:
        """Make the plain contenders, and the contenders in ``names`` that can take part.

        Returns:
            The contenders by name, each with a copy of the model, and the reasons why others are
            absent.
        """
        # The contenders of the last case are large, and may be in reference cycles.
        gc.collect()
        model, sparsity = self.build_model(), Sparsity(self.density, update_every)
        wanted = [PLAIN, AGAIN, *names]
        if self.optimizer != REFERENCE:
            wanted.append(REFERENCE)
        contenders, absent = {}, {}
        for name in wanted:
            optimizer = REFERENCE if name == REFERENCE else self.optimizer
            make = CHOICES.get(name, Contender)
            try:
                contenders[name] = make(copy.deepcopy(model), optimizer, sparsity)
            except ImportError as error:
                absent[name] = str(error)
        return contenders, absent
