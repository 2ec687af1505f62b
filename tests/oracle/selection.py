"""Selecting by score where ties go to the lowest index."""

import numpy as np


def largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Mask of the `k` largest scores; of equal scores the one with the lower index."""
    return _mask(len(scores), np.argsort(-scores, kind="stable")[:k])


def smallest(scores: np.ndarray, k: int) -> np.ndarray:
    """Mask of the `k` smallest scores; of equal scores the one with the lower index."""
    return _mask(len(scores), np.argsort(scores, kind="stable")[:k])


def among(eligible: np.ndarray, scores: np.ndarray, k: int, *, smallest_first: bool) -> np.ndarray:
    """Mask of the `k` extreme scores of the eligible positions, never of any other."""
    positions = np.flatnonzero(eligible)
    pick = smallest if smallest_first else largest
    return _mask(len(scores), positions[pick(scores[positions], k)])


def brute_force_order(eligible: np.ndarray, scores: np.ndarray, *, smallest_first: bool) -> list:
    """The eligible positions in the order of selection, by Python's own sort on (score, index)."""
    sign = 1.0 if smallest_first else -1.0
    positions = [i for i in range(len(scores)) if bool(eligible[i])]
    return sorted(positions, key=lambda i: (sign * float(scores[i]), i))


def _mask(size: int, positions: np.ndarray) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[positions] = True
    return mask
