"""Initial random masks."""

from collections.abc import Sequence

import numpy as np
import torch

from tests.oracle.selection import largest


def uniform_scores(generator: torch.Generator, numel: int) -> np.ndarray:
    """The random numbers are torch's, so that both sides see the same ones."""
    return torch.rand(numel, generator=generator).numpy()


def random_masks(
    numels: Sequence[int], counts: Sequence[int], generator: torch.Generator
) -> list[np.ndarray]:
    """The `count` largest of fresh random scores, layer after layer; full layers draw nothing."""
    return [
        np.ones(numel, dtype=bool)
        if count == numel
        else largest(uniform_scores(generator, numel), count)
        for numel, count in zip(numels, counts, strict=True)
    ]
