"""Mask updates: when they are due, and what has to happen before and after each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method, Update
from sparseopt.methods.gradient_memory import RememberedGradients
from sparseopt.optimizer.gradient_checks import are_finite, finite_norms, zero_everywhere
from sparseopt.optimizer.mask_updates_merge import able_to_move, skipped_update, update_masks
from sparseopt.optimizer.progress import Progress
from sparseopt.optimizer.state.base import StateStore

__all__ = ["MaskUpdater"]


class MaskUpdater:
    """Asks the schedule whether, the method what to score, and the layers to drop and grow.

    Args:
        method: what decides.
        layers: the layers; the list is shared and may grow.
        store: keeps their optimizer state.
        progress: the schedule, the history, and how far training is; brought forward by updates.
    """

    def __init__(
        self, method: Method, layers: list[SparseLayer], store: StateStore, progress: Progress
    ) -> None:
        self.method = method
        self.layers = layers
        self.store = store
        self.progress = progress
        rule = method.memory
        self.memory = None if rule is None else RememberedGradients(rule)
        self._prepared = False
        self._warned: set[str] = set()

    def is_due(self) -> bool:
        """Whether the next step is an update step."""
        progress = self.progress
        coming = progress.steps + 1, progress.schedule, progress.total_steps
        return self._can_move() and (self.method.is_update(*coming) or self._is_overdue())

    def needs_dense_gradients(self) -> bool:
        """Whether the next step reads gradients of dropped weights: to update, or to remember."""
        progress = self.progress
        return self._can_move() and self.method.reads_dense_gradient(
            progress.steps + 1, progress.schedule, progress.total_steps
        )

    def remembering(
        self, closure: Callable[[], Any] | None, gradients: Callable[[], Sequence[Tensor]]
    ) -> Callable[[], Any] | None:
        """Feed the method's memory on a step that is no update step.

        Args:
            closure: what the step is given.
            gradients: returns all gradients of the optimizer's parameters.

        Returns:
            What to give the step instead: the closure, which feeds the memory when it is first
            evaluated.
        """
        if self.memory is None:
            return closure
        if not self._is_remembered():
            self.memory.forget()
            return closure
        if closure is None:
            self._remember(gradients())
            return None
        evaluated = False

        def remembered() -> Any:
            nonlocal evaluated
            loss = closure()
            if not evaluated:
                self._remember(gradients())
                evaluated = True
            return loss

        return remembered

    def update(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Move the masks, unless a gradient is not finite, and write the history.

        Args:
            step: the call of ``step()`` that this is, counted from 1.
            gradients: all gradients of the optimizer's parameters.
        """
        progress = self.progress
        update = self._about(step)
        dense = self.method.dense_passes if self.needs_dense_gradients() else 0
        usage = progress.usage.advanced(step, self.layers, dense)
        if progress.schedule.t_end is None and not self.method.has_own_schedule:
            self._warn_once(
                "horizon",
                "no horizon is known, so the drop fraction stays at "
                f"alpha={progress.schedule.alpha} and masks move for ever: pass total_steps= (or "
                "t_end=), or call set_horizon(steps).",
            )
        if self.method.prepares_forward and not self._prepared:
            record = skipped_update(self.layers, update)
            self._warn_once(
                "forward pass",
                f"the optimizer's model made no training pass before the update at step {step}, so "
                f"method={self.method.name!r} does not know what to grow, and skipped it.",
            )
        elif (norms := finite_norms(gradients)) is not None:
            if self.memory is not None:
                self.memory.feed(self.layers)
            zero = zero_everywhere(gradients, norms)
            record = update_masks(self.layers, self.method, update, self.store, zero=zero)
        else:
            record = skipped_update(self.layers, update)
            self._warn_once(
                "gradient",
                f"a gradient was not finite at step {step}, so this mask update was skipped; "
                "history tells if it happens again.",
            )
        if self.memory is not None and self.memory.rule.steps is not None:
            self.memory.forget()
        self.undo_preparation()
        progress.usage = usage
        progress.history.append(record)

    def prepare_forward(self, model: nn.Module) -> None:
        """Let the method prepare the forward pass of an update step that is due; once for each."""
        if self._prepared or not self.is_due():
            return
        self.method.prepare_forward(model, self._about(self.progress.steps + 1))
        self._prepared = True

    def forget_preparation(self) -> None:
        """Have the next forward pass prepared anew: a checkpoint replaces what this one was for."""
        self._prepared = False

    def undo_preparation(self) -> None:
        """Make all weights zero again that are not live."""
        if self._prepared:
            for layer in self.layers:
                layer.mask_(layer.weight)
            self._prepared = False

    def require_horizon(self) -> None:
        """Raise :class:`ValueError` if training can't start without a horizon and there is none."""
        if self._lacks_horizon():
            raise ValueError(
                f"method={self.method.name!r} needs a horizon: pass total_steps= or t_end=, or "
                "call set_horizon(steps) before the first step()."
            )

    def check_horizon(self) -> None:
        """Warn if the horizon ends before the first update."""
        schedule, total_steps = self.progress.schedule, self.progress.total_steps
        if schedule.t_end is None or not self.method.moves_masks or self.method.has_own_schedule:
            return
        candidates = {schedule.delta_t, schedule.t_end}
        if not any(self.method.is_update(step, schedule, total_steps) for step in candidates):
            self._warn_once(
                "short horizon",
                f"updates end at t_end={schedule.t_end}, before the first one at "
                f"delta_t={schedule.delta_t}: masks will not move. Pass a smaller delta_t= or a "
                "longer horizon.",
                stacklevel=4,
            )

    def _about(self, step: int) -> Update:
        progress = self.progress
        # Gradients may be masked after the end, and newcomers have no further update to be judged.
        overdue = self._is_overdue()
        return Update(
            step=step,
            fraction=0.0 if overdue else self.method.fraction(step, progress.schedule),
            schedule=progress.schedule,
            total_steps=progress.total_steps,
            generator=progress.generator,
            memory=self.memory,
            layers=self.layers,
        )

    def _remember(self, gradients: Sequence[Tensor]) -> None:
        """Feed the memory, unless a gradient is not finite, and mask what was left dense."""
        assert self.memory is not None
        if are_finite(gradients):
            self.memory.feed(self.layers)
        if not self.memory.rule.dense:
            return
        self.progress.usage = self.progress.usage.with_dense_gradient(self.layers)
        for layer in self.layers:
            if layer.weight.grad is not None and not layer.is_full:
                layer.mask_(layer.weight.grad)

    def _is_remembered(self) -> bool:
        """Whether the next step's gradients will count for an update."""
        progress = self.progress
        return self._can_move() and self.method.remembers(
            progress.steps + 1, progress.schedule, progress.total_steps
        )

    def _is_overdue(self) -> bool:
        """Whether updates have ended, and there is more live than there was to be in the end."""
        t_end = self.progress.schedule.t_end
        if not self.method.settles or t_end is None or self.progress.steps < t_end:
            return False
        able = able_to_move(self.layers, self.method, self.store)
        return sum(layer.live for layer in able) > sum(layer.target for layer in able)

    def _can_move(self) -> bool:
        return not (self._lacks_horizon() or all(layer.is_dense for layer in self.layers))

    def _lacks_horizon(self) -> bool:
        return self.method.needs_horizon and self.progress.schedule.t_end is None

    def _warn_once(self, kind: str, message: str, *, stacklevel: int = 7) -> None:
        # Between step() and its caller are torch's hooks and what keeps torch.compile out.
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=stacklevel)
