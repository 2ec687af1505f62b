"""Mask updates: when an update is due, and the work around it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.distributed.choice_check import SameChoice
from sparseopt.distributed.ranks import is_distributed
from sparseopt.distributed.uneven_inputs import require_equal_steps
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method
from sparseopt.methods.gradient_memory import AccumulatedGradients
from sparseopt.methods.state import MethodState
from sparseopt.methods.update import Update
from sparseopt.optimizer.gradients import (
    are_finite,
    finite_norms,
    mask_gradient,
    zero_everywhere,
)
from sparseopt.optimizer.mask_moves import (
    able_to_move,
    density_of,
    skipped_update,
    update_masks,
)
from sparseopt.optimizer.planned_moves import require_gradients_asked_for
from sparseopt.optimizer.progress import Progress
from sparseopt.optimizer.state.base import StateBackend
from sparseopt.utils.probe import preserve_buffers

__all__ = ["MaskUpdater"]

#: The largest share of steps that may be updates without a warning.
MOST_UPDATES: Final = 1 / 3


class MaskUpdater:
    """Decides whether a step is an update, and moves the masks by the scores of the method.

    Args:
        method: the method, which decides.
        layers: the layers; the list is shared and may grow.
        backend: steps the inner optimizer and keeps the layers' optimizer state; it may be
            replaced.
        progress: the schedule, the history and the step count; updates write to it.

    Attributes:
        memory: the gradients that the method accumulates, or ``None``.
        state: the state of the method.
        choice_check: compares the choices of the ranks.
        sees_every_step: whether the method may observe steps that are not updates.
        needs_dense_gradients: whether the next step reads gradients of dropped weights: to update,
            or to accumulate them.
        is_prepared: whether weights have the values now that the method gave them for the forward
            pass of the next step.
    """

    def __init__(
        self, method: Method, layers: list[SparseLayer], backend: StateBackend, progress: Progress
    ) -> None:
        self.method = method
        self.layers = layers
        self.backend = backend
        self.progress = progress
        rule = method.memory
        self.memory = None if rule is None else AccumulatedGradients(rule)
        self.state = MethodState(method)
        self.choice_check = SameChoice()
        self.sees_every_step = rule is not None or method.has_observer
        self.needs_dense_gradients = False
        self._is_scheduled = False
        self._may_be_overdue = False
        self.is_prepared = False
        self._prepared_step: int | None = None
        self._numbers_before: Tensor | None = None
        self._is_checked = False
        self._warned: set[str] = set()

    @property
    def is_due(self) -> bool:
        """Whether the next step is an update step."""
        return self._is_scheduled or self._is_overdue()

    @property
    def masks_may_move(self) -> bool:
        """Whether the next step or a later one may be an update."""
        if not (self.method.moves_masks and self._can_move()):
            return False
        t_end = self.progress.schedule.t_end
        if t_end is None or self.method.has_own_schedule:
            return True
        return self.progress.steps < t_end or self.is_due

    def plan_next_step(self) -> None:
        """Decide whether the next step is an update; call it when steps or schedule change."""
        progress, method = self.progress, self.method
        coming = progress.steps + 1, progress.schedule, progress.total_steps
        can_move = self._can_move()
        t_end = progress.schedule.t_end
        self._is_scheduled = can_move and method.is_update(*coming)
        self._may_be_overdue = (
            can_move
            and method.reaches_target_at_t_end
            and t_end is not None
            and progress.steps >= t_end
        )
        self.needs_dense_gradients = can_move and method.reads_dense_gradient(*coming)

    def accumulating(
        self, closure: Callable[[], Any] | None, gradients: Callable[[], Sequence[Tensor]]
    ) -> Callable[[], Any] | None:
        """Let the method accumulate and observe the gradients of a step that is not an update.

        Without a closure this happens at once; with a closure, when it is first evaluated.

        Args:
            closure: the closure of the step.
            gradients: returns all gradients of the optimizer's parameters.

        Returns:
            The closure to pass to the inner optimizer instead.
        """
        if self.memory is not None and not self._is_accumulated():
            self.memory.forget()
        if not (self._is_accumulated() or self._is_observed()):
            return closure
        if closure is None:
            self._see(gradients())
            return None
        evaluated = False

        def evaluate_and_accumulate() -> Any:
            nonlocal evaluated
            loss = closure()
            if not evaluated:
                self._see(gradients())
                evaluated = True
            return loss

        return evaluate_and_accumulate

    def update(
        self,
        step: int,
        gradients: Sequence[Tensor],
        model: nn.Module | None,
        *,
        were_masked: bool = False,
    ) -> None:
        """Move the masks, unless the gradients do not serve, and write the history.

        Args:
            step: the number of this call of ``step()``, counted from 1.
            gradients: all gradients of the optimizer's parameters.
            model: the model, if it is known.
            were_masked: whether ``backward()`` masked gradients, because this step was not an
                update then.

        Raises:
            RankMismatchError: if ranks choose differently, or may make different numbers of steps.
        """
        if is_distributed():
            require_equal_steps([model, self.backend.inner], self.method.name)
        progress = self.progress
        if model is not None and self._prepared_step == step:
            # A checkpoint was saved since the forward pass, so the values have to be written again.
            self.prepare_forward(model)
        update = self._about(step)
        dense = self.method.dense_passes if self.needs_dense_gradients else 0
        usage = progress.usage.advanced(step, self.layers, dense)
        if progress.schedule.t_end is None and not self.method.has_own_schedule:
            self.warn_once(
                "horizon",
                "no horizon is known, so the drop fraction stays at "
                f"alpha={progress.schedule.alpha} and masks never stop moving: pass total_steps= "
                "(or t_end=), or call set_horizon(steps).",
            )
        if self.method.prepares_forward and not self.is_prepared:
            record = skipped_update(self.layers, update)
            self.warn_once(
                "forward pass",
                f"the optimizer's model made no training pass before the update at step {step}. "
                f"method={self.method.name!r} can't grow without one, so this update was skipped.",
            )
        elif were_masked and self.needs_dense_gradients:
            record = skipped_update(self.layers, update)
            self.warn_once(
                "masked gradients",
                f"the update at step {step} was skipped: gradients were masked in backward(), "
                "because the step was no update then. Call set_horizon() and load_state_dict() "
                "before backward(), or after step().",
            )
        elif (norms := finite_norms(gradients)) is not None:
            self._accumulate(update)
            update = replace(update, zero_gradients=zero_everywhere(gradients, norms))
            self._check_gradients_asked_for(update)
            record = update_masks(self.layers, self.method, update, self.backend, self.choice_check)
        else:
            record = skipped_update(self.layers, update)
            self.warn_once(
                "gradient",
                f"a gradient was not finite at step {step}, so this mask update was skipped; if it "
                "happens again, only history shows it.",
            )
        if self.memory is not None and self.memory.rule.steps is not None:
            self.memory.forget()
        self._end_preparation()
        progress.usage = usage
        progress.history.append(record)

    def compare_ranks(self) -> None:
        """Start comparing the ranks' choices, once there are several ranks. Collective."""
        self.choice_check = SameChoice()

    def prepare_forward(self, model: nn.Module) -> None:
        """Let the method prepare the forward pass of a due update, unless it is prepared.

        A pass that computes with other tensors in place of the weights is not prepared, as in
        :func:`torch.func.functional_call` or under a transform of :mod:`torch.func`.
        """
        if self.is_prepared or not self.is_due or not self._computes_with_weights(model):
            return
        self._numbers_before, step = self.progress.generator.get_state(), self.progress.steps + 1
        # If it was prepared before, forward passes since then have moved the running statistics.
        again = self._prepared_step == step
        with preserve_buffers(model) if again else nullcontext():
            self.method.prepare_forward(model, self._about(step))
        self.is_prepared, self._prepared_step = True, step

    def _computes_with_weights(self, model: nn.Module) -> bool:
        if torch._C._are_functorch_transforms_active():
            return False
        # In a forward pass, FSDP2 puts gathered parameters in place of the sharded ones.
        if any(layer.is_sharded for layer in self.layers):
            return True
        parameters = set(model.parameters())
        return all(layer.weight in parameters for layer in self.layers)

    def forget_preparation(self) -> None:
        """Prepare the next forward pass again, because a checkpoint has replaced the weights."""
        self.is_prepared = False
        self._prepared_step = None

    def undo_preparation(self) -> None:
        """Set all weights that are not live to zero again, and take random numbers back.

        So the next preparation writes the same values, and the run stays the same.
        """
        if self.is_prepared:
            self._end_preparation()
            assert self._numbers_before is not None
            self.progress.generator.set_state(self._numbers_before)

    def _end_preparation(self) -> None:
        """Set all weights that are not live to zero, if a forward pass was prepared."""
        if self.is_prepared:
            for layer in self.layers:
                layer._clear_dropped_()
            self.is_prepared = False

    def require_horizon(self) -> None:
        """Raise :class:`ValueError` if the method needs a horizon and has none."""
        if self._lacks_horizon():
            raise ValueError(
                f"method={self.method.name!r} needs a horizon: pass total_steps= or t_end=, or "
                "call set_horizon(steps) before the first step()."
            )

    def check_horizon(self) -> None:
        """Warn if the horizon ends before the first update, or if there are too many updates."""
        self._check_share_of_updates()
        schedule, total_steps = self.progress.schedule, self.progress.total_steps
        if schedule.t_end is None or not self.method.moves_masks or self.method.has_own_schedule:
            return
        candidates = {schedule.delta_t, schedule.t_end}
        if not any(self.method.is_update(step, schedule, total_steps) for step in candidates):
            self.warn_once(
                "short horizon",
                f"updates end at t_end={schedule.t_end}, before the first update at "
                f"delta_t={schedule.delta_t}: masks will not move. Pass a smaller delta_t= or a "
                "longer horizon.",
                stacklevel=4,
            )

    def warn_once(self, kind: str, message: str, *, stacklevel: int = 7) -> None:
        """Give a warning, unless a warning of this kind was given before."""
        # The default counts the frames of torch's hooks and of disable_dynamo around step().
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=stacklevel)

    def _check_share_of_updates(self) -> None:
        """Warn if updates replace more than a third of the steps until the horizon."""
        schedule = self.progress.schedule
        if not self.method.moves_masks or self.method.has_own_schedule or not self._can_move():
            return
        steps = self.progress.total_steps or schedule.t_end or schedule.delta_t
        last = schedule.delta_t if schedule.t_end is None else schedule.t_end - 1
        share = min(last, steps) // schedule.delta_t / steps
        if share > MOST_UPDATES:
            self.warn_once(
                "too many updates",
                f"delta_t={schedule.delta_t}: {share:.0%} of the steps move masks instead of "
                "training the weights, because an update replaces a gradient step. Pass a larger "
                "delta_t=, about 3 % of the steps.",
                stacklevel=5,
            )

    def _about(self, step: int) -> Update:
        """Return the description of ``step`` that the method gets."""
        progress = self.progress
        # After t_end gradients may be masked, and no later update could drop new weights again.
        overdue = self._is_overdue()
        return Update(
            step=step,
            fraction=0.0 if overdue else float(self.method.fraction(step, progress.schedule)),
            schedule=progress.schedule,
            total_steps=progress.total_steps,
            generator=progress.generator,
            memory=self.memory,
            layers=self.layers,
            state=self.state,
        )

    def _check_gradients_asked_for(self, update: Update) -> None:
        """Check once, at the first update, that a method that reads dense gradients declares it."""
        if not (self._is_checked or self.needs_dense_gradients or self.method.needs_dense_gradient):
            require_gradients_asked_for(self.layers, self.method, update)
        self._is_checked = True

    def _see(self, gradients: Sequence[Tensor]) -> None:
        """Accumulate if all gradients are finite; then mask the gradients that were left dense."""
        if are_finite(gradients):
            self._accumulate(self._about(self.progress.steps + 1))
        if not self.needs_dense_gradients:
            return
        self.progress.usage = self.progress.usage.with_dense_gradient(self.layers)
        for layer in self.layers:
            mask_gradient(layer)

    @torch.no_grad()
    def _accumulate(self, update: Update) -> None:
        """Add the gradients to the accumulated ones, and let the method observe."""
        if self.memory is not None and (self.is_due or self._is_accumulated()):
            self.memory.feed(self.layers)
        if not self._is_observed():
            return
        method = self.method
        for layer in self.layers:
            gradient = layer.weight.grad
            if layer.is_dense or gradient is None:
                continue
            if self.needs_dense_gradients and not method.observes_dense_gradient:
                gradient = gradient.clone()
                layer._mask_(gradient)
            method.observe(layer, gradient, update)

    def _is_accumulated(self) -> bool:
        """Whether the next step's gradients will count for an update."""
        progress = self.progress
        return self._can_move() and self.method.accumulates(
            progress.steps + 1, progress.schedule, progress.total_steps
        )

    def _is_observed(self) -> bool:
        """Whether the method observes the next step."""
        progress = self.progress
        return self._can_move() and self.method.observes(
            progress.steps + 1, progress.schedule, progress.total_steps
        )

    def _is_overdue(self) -> bool:
        """Whether updates have ended with more live weights than the targets."""
        if not self._may_be_overdue:
            return False
        able = able_to_move(self.layers, self.method, self.backend)
        exceeds = sum(layer.live for layer in able) > sum(layer.target for layer in able)
        return exceeds and not self._is_stuck()

    def _is_stuck(self) -> bool:
        """Whether an update after ``t_end`` moved nothing, and live counts are still the same.

        Another update would move nothing either, and every update replaces a gradient step.
        """
        history, t_end = self.progress.history, self.progress.schedule.t_end
        if not history or t_end is None:
            return False
        last = history[-1]
        if last.step <= t_end or last.dropped or last.skipped:
            return False
        return last.density == density_of(self.layers)

    def _can_move(self) -> bool:
        return not (self._lacks_horizon() or all(layer.is_dense for layer in self.layers))

    def _lacks_horizon(self) -> bool:
        return self.method.needs_horizon and self.progress.schedule.t_end is None
