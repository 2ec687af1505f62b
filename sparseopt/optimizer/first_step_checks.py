"""Checks that run before the first step, and again when something changed, not at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparseopt.distributed.choice_check import checksum, mixed
from sparseopt.distributed.dtensor import full_tensor, is_sharded
from sparseopt.distributed.ranks import is_distributed, require_agreement
from sparseopt.distributed.uneven_inputs import data_parallel_models, require_equal_steps
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

    def check(
        self,
        model: nn.Module | None,
        closure: Callable[[], Any] | None,
        gradients: Callable[[], Sequence[Tensor]],
    ) -> Callable[[], Any] | None:
        """Warn of weights that training would lose or leave out, and require a horizon.

        Only ``step()`` calls this: the warnings name the line that calls ``step()``.

        Args:
            model: the model, if it is known.
            closure: the closure of the step.
            gradients: returns all gradients of the optimizer's parameters.

        Returns:
            The closure to use instead. If there is one, it compares the ranks, once it has
            computed gradients.

        Raises:
            RankMismatchError: if several ranks made masks alone, and the masks differ; or if
                another rank has the same gradients and other masks; or if ranks may make different
                numbers of steps.
            ValueError: if the method needs a horizon and has none.
        """
        # A rank that is without data already would not take part in the comparison below.
        self._require_equal_steps(model)
        # Before any warning: a rank with other masks would get warnings that don't apply to rank 0.
        if self.made_alone and is_distributed():
            self._require_equal_masks()
        updater = self._updater
        warn_of_departed(updater, model, stacklevel=7)
        if not updater.is_prepared:
            by_size = self._by_size and not updater.progress.steps
            warn_of_weights_outside(updater.layers, chosen_by_size=by_size, stacklevel=6)
        updater.require_horizon()
        if closure is None or not is_distributed():
            self._require_equal_runs(gradients())
            self.is_checked = True
            return closure

        def evaluate_and_compare() -> Any:
            loss = closure()
            if not self.is_checked:
                self._require_equal_runs(gradients())
                self.is_checked = True
            return loss

        return evaluate_and_compare

    @torch.no_grad()
    def _require_equal_runs(self, gradients: Sequence[Tensor]) -> None:
        """Raise if another rank has the same gradients, but other masks or another progress.

        Data parallel training gives all ranks the same gradients, even if their masks differ. Ranks
        that train independently of each other have other gradients, so they are not compared, and
        no rank waits. Sharded weights are not compared: the ranks share their masks.

        Raises:
            RankMismatchError: if they differ.
        """
        if not is_distributed():
            return
        updater = self._updater
        seen = [checksum(one) for one in gradients if _is_plain(one)]
        if not any(bool(one) for one in seen):
            return
        own = [layer for layer in updater.layers if not layer.is_sharded]
        numbers = updater.progress.generator.get_state()
        places = torch.arange(numbers.numel(), device="cpu") * 256
        chosen = [
            *(mixed(layer.positions()).sum() for layer in own),
            torch.tensor(updater.progress.steps, device="cpu"),
            mixed(places + numbers).sum(),
        ]
        updater.choice_check.require(
            ("first step", *((layer.name, layer.numel) for layer in own)),
            seen,
            chosen,
            message=(
                f"rank {dist.get_rank()} and another rank have the same gradients, but other masks "
                f"or another step count (here steps={updater.progress.steps}). Probably a "
                "checkpoint was loaded on one rank only: call load_state_dict() with the same "
                "state dict on every rank."
            ),
        )

    def _require_equal_steps(self, model: nn.Module | None) -> None:
        """Raise if ``join()`` lets ranks make different numbers of steps while masks move."""
        updater = self._updater
        if not (is_distributed() and updater.masks_may_move):
            return
        own = [layer.weight for layer in updater.layers if not layer.is_sharded]
        models = data_parallel_models(model, own)
        require_equal_steps([*models, updater.backend.inner], updater.method.name)

    def _require_equal_masks(self) -> None:
        """Check that all ranks have the same masks. Collective."""
        updater = self._updater
        masks = {layer.name: full_tensor(layer.mask) for layer in updater.layers}
        kept = updater.state.everything(updater.layers)
        require_agreement(masks, updater.progress.generator, kept)
        updater.compare_ranks()
        self.made_alone = False


def _is_plain(gradient: Tensor) -> bool:
    dense = gradient.layout == torch.strided and not gradient.is_complex()
    return dense and not is_sharded(gradient)
