"""Checks that run before the first step, and again when something changed, not at every step."""

from __future__ import annotations

from torch import nn

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.distributed.ranks import is_distributed, require_agreement
from sparseopt.masks.already_sparse import warn_of_weights_outside
from sparseopt.optimizer.departed import warn_of_departed
from sparseopt.optimizer.mask_updates import MaskUpdater

__all__ = ["FirstStepChecks"]


class FirstStepChecks:
    """Checks, before a step, the facts that were not known at construction or loading.

    Args:
        updater: the mask updater, which has the layers (with their first masks) and the progress.
        by_size: whether the first masks keep the largest weights.

    Attributes:
        is_checked: whether :meth:`check` has run since something that it checks has changed.
        made_alone: whether each process made its masks alone, and they have not been compared yet.
    """

    def __init__(self, updater: MaskUpdater, *, by_size: bool) -> None:
        self.is_checked = False
        self.made_alone = not is_distributed()
        self._updater = updater
        self._by_size = by_size

    def check(self, model: nn.Module | None) -> None:
        """Warn of weights that training would lose or leave out, and require a horizon.

        Only ``step()`` calls this: the warnings name the line that calls ``step()``.

        Args:
            model: the model, if it is known.

        Raises:
            RankMismatchError: if several ranks made masks alone, and the masks differ.
            ValueError: if the method needs a horizon and has none.
        """
        # This comes first: a rank with other masks would get warnings that don't apply to rank 0.
        if self.made_alone and is_distributed():
            self._require_equal_masks()
        updater = self._updater
        warn_of_departed(updater, model, stacklevel=7)
        if not updater.is_prepared:
            by_size = self._by_size and not updater.progress.steps
            warn_of_weights_outside(updater.layers, chosen_by_size=by_size, stacklevel=6)
        updater.require_horizon()
        self.is_checked = True

    def _require_equal_masks(self) -> None:
        """Check that all ranks have the same masks. Collective."""
        updater = self._updater
        masks = {layer.name: full_tensor(layer.mask) for layer in updater.layers}
        kept = updater.state.everything(updater.layers)
        require_agreement(masks, updater.progress.generator, kept)
        updater.compare_ranks()
        self.made_alone = False
