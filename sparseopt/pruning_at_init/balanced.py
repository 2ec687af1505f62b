"""A batch with equally many samples of each class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparseopt.utils.validation import check_count

__all__ = ["balanced_batch"]


def balanced_batch(
    batches: Iterable[tuple[Tensor, Tensor]], *, classes: int, per_class: int = 25
) -> tuple[Tensor, Tensor]:
    """Collect the first ``per_class`` samples of each class, in the order of the classes.

    Args:
        batches: pairs of inputs, ``(n, ...)``, and class indices, ``(n,)``; a data loader, for
            example. No more are drawn than needed.
        classes: number of classes.
        per_class: samples of each class. GraSP's authors take 25.

    Returns:
        Inputs, ``(classes * per_class, ...)``, and their class indices.

    Raises:
        ValueError: if the batches end too early, or a target is not a class index.

    Example:
        >>> import torch
        >>> from sparseopt import balanced_batch
        >>> data = [(torch.arange(6.0), torch.tensor([0, 0, 0, 1, 0, 1]))]
        >>> balanced_batch(data, classes=2, per_class=2)
        (tensor([0., 1., 3., 5.]), tensor([0, 0, 1, 1]))
    """
    check_count("classes", classes, minimum=1)
    check_count("per_class", per_class, minimum=1)
    found: list[list[Tensor]] = [[] for _ in range(classes)]
    missing = classes * per_class
    for inputs, targets in batches:
        for sample, label in zip(inputs, targets.tolist(), strict=True):
            if not 0 <= label < classes:
                raise ValueError(
                    f"target {label} must be a class index from 0 to {classes - 1}, because "
                    f"classes={classes}."
                )
            if len(found[label]) < per_class:
                found[label].append(sample)
                missing -= 1
        if not missing:
            samples = torch.stack([sample for group in found for sample in group])
            return samples, torch.arange(classes, device=targets.device).repeat_interleave(
                per_class
            )
    counts = {label: len(group) for label, group in enumerate(found) if len(group) < per_class}
    raise ValueError(
        f"the batches ended before there were per_class={per_class} samples of every class; "
        f"found, by class: {counts}."
    )
