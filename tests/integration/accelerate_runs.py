"""The runs that the tests of Accelerate compare.

This module does not import Accelerate, which takes seconds.
"""

from dataclasses import dataclass

import torch

from tests.integration.frameworks import SETTINGS

#: Runs save a checkpoint after this step, and resume from it.
SAVED_AT = 13


@dataclass(frozen=True)
class Run:
    """The settings of one run.

    Attributes:
        method: The method.
        accumulate: Micro-batches a step.
        precision: Accelerate's `mixed_precision`.
        overflows: Batches that make the loss NaN.
        seed: Of the masks; torch's own if there is none.
        fsdp: Whether the model is sharded, by FSDP2.
    """

    method: str = "rigl"
    accumulate: int = 1
    precision: str = "no"
    overflows: tuple[int, ...] = ()
    seed: int | None = SETTINGS["seed"]
    fsdp: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Double precision where sums over ranks have another order, so that no choice differs."""
        return torch.float64 if self.fsdp else torch.float32


ONE_PROCESS = {
    "rigl": Run(),
    "set, accumulated": Run("set", accumulate=2),
    "pruning": Run("pruning"),
    "bf16": Run("set", precision="bf16"),
    # The second overflow comes when step 5, an update step, is due: batch 2 was skipped.
    "fp16": Run(precision="fp16", overflows=(2, 5)),
}

#: Each rank has a seed of its own.
SEED_OF_RANK_ZERO = 100
TWO_RANKS = {
    "set on two ranks": Run("set", seed=None),
    "rigl on two ranks, accumulated": Run(accumulate=2, seed=None),
    "set under FSDP2": Run("set", seed=None, fsdp=True),
    "rigl under FSDP2, accumulated": Run(accumulate=2, seed=None, fsdp=True),
}
