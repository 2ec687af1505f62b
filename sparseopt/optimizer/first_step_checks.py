"""What has to hold before training goes on: the checks that need not run at every step."""

from __future__ import annotations

from torch import nn

from sparseopt.distributed.dtensor import whole
from sparseopt.distributed.ranks import is_distributed, require_agreement
from sparseopt.masks.already_sparse import warn_of_weights_outside
from sparseopt.optimizer.departed import warn_of_departed
from sparseopt.optimizer.mask_updates import MaskUpdater

__all__ = ["FirstStepChecks"]


class FirstStepChecks:
    """Checks, before a step, what construction or a checkpoint could not know yet.

    Args:
        updater: has the layers, whose masks were just made, and the progress.
        by_size: whether the first masks keep the largest weights.

    Attributes:
        is_checked: whether :meth:`check` has run since something changed that it looks at.
        made_alone: whether masks were made by one process, as far as is known now.
    """

    def __init__(self, updater: MaskUpdater, *, by_size: bool) -> None:
        self.is_checked = False
        self.made_alone = not is_distributed()
        self._updater = updater
        self._by_size = by_size

    def check(self, model: nn.Module | None) -> None:
        """Warn of weights that training would lose or leave out, and require a horizon.

        For ``step()`` to call: warnings are of the line that calls that.

        Args:
            model: the model, if it is known.

        Raises:
            RankMismatchError: if masks were made by each of several ranks, and differ.
            ValueError: if training can't start without a horizon and there is none.
        """
        # First: ranks with masks of their own would be warned of weights that others have.
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
        """Check, once there are several ranks, that their masks are the same. Collective."""
        updater = self._updater
        masks = {layer.name: whole(layer.mask) for layer in updater.layers}
        kept = updater.state.everything(updater.layers)
        require_agreement(masks, updater.progress.generator, kept)
        updater.compare_ranks()
        self.made_alone = False
