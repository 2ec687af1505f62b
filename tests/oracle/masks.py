"""Initial random masks."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from tests.oracle.selection import largest


def generator_of(seed: int) -> torch.Generator:
    """The generator of a run with this seed, by the rule in the semantics."""
    text = hashlib.sha256(b"sparseopt masks %d" % seed).hexdigest()
    first, second, third, fourth = (int(text[place : place + 2], 16) for place in (0, 2, 4, 6))
    return torch.Generator().manual_seed(first + 256 * second + 256**2 * third + 256**3 * fourth)


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
