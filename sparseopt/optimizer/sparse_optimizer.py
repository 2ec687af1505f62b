"""``SparseOptimizer``, which wraps an optimizer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.distributed.ranks import agreed_generator, is_distributed
from sparseopt.distributions import Init
from sparseopt.flops import Accountant, FlopsReport
from sparseopt.masks.drop_and_grow import Regrow
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.selection import Selection
from sparseopt.methods import Method, get_method
from sparseopt.optimizer import build, checkpoint
from sparseopt.optimizer.departed import warn_of_departed
from sparseopt.optimizer.find_weights import refuse_flat_parameters
from sparseopt.optimizer.first_step_checks import FirstStepChecks
from sparseopt.optimizer.given_masks import mask_copy, set_masks
from sparseopt.optimizer.gradients import GradientFlag
from sparseopt.optimizer.hooks import Holder, ModelHooks, detach_previous_wrapper
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.new_group import add_group
from sparseopt.optimizer.progress import Progress, UpdateRecord
from sparseopt.optimizer.replaced_parameters import rebind
from sparseopt.optimizer.state import (
    LiveState,
    StateBackend,
    StateMode,
    make_backend,
    renamed_mode,
)
from sparseopt.optimizer.summary import summary_table
from sparseopt.optimizer.weight_backup import WeightBackup
from sparseopt.optimizer.wrapper import WrappedOptimizer, share_local_state
from sparseopt.schedules import Decay, make_schedule
from sparseopt.utils.closures import evaluate
from sparseopt.utils.compile import disable_dynamo
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.validation import check_density, check_steps
from sparseopt.utils.wrappers import unwrapped

__all__ = ["SparseOptimizer"]

#: Keys in a pickle: whether the optimizer was detached, and the model if the method needs it.
DETACHED: Final = "_was_detached"
MODEL: Final = "_model"


class SparseOptimizer(WrappedOptimizer):
    """Wraps an optimizer so that training is sparse from the first step to the last.

    A fixed budget of weights is live. All other weights are zero, under any inner optimizer.
    Every ``delta_t``-th call of :meth:`step`, until ``t_end``, is an update: the method drops some
    live weights and grows as many others, and the inner optimizer is not stepped. The training loop
    does not change: to schedulers, ``GradScaler``, clipping, accumulation and data parallel
    training this is an ordinary :class:`torch.optim.Optimizer`, whose ``param_groups``, ``state``
    and ``defaults`` are the inner optimizer's.

    Where :mod:`torch.distributed` is initialised, construction is a collective call: all ranks make
    the optimizer, and agree on rank 0's seed and masks.

    Args:
        optimizer: any optimizer of :mod:`torch.optim` (except SparseAdam) or subclass of
            :class:`torch.optim.Optimizer`. A param group may have ``density=``: a density of its
            own, or ``False`` to leave it dense.
        model: the model. With it, the weights of convolutions, linear layers and attention
            projections are made sparse; without it, every trainable parameter of two or more
            dimensions. DTensors (FSDP2, tensor parallel) are weights like any other.
        method: a registered name (see :func:`sparseopt.available_methods`) or a
            :class:`sparseopt.Method`.
        density: share of the weights that is live, in (0, 1].
        init: how much of each layer is live: ``"erk"``, ``"er"``, ``"uniform"``, a function from
            shapes and a density to densities by layer, or a mapping from names or patterns to a
            density or one of these, ``{"head": 1.0, "*": "erk"}``: :doc:`/how-to/init`.
        mask: which weights are live at first: ``"random"``, ``"magnitude"``, ``"nonzero"`` (the
            weights that are not zero now; ``density`` does not count then), or a mapping from layer
            name to bool tensor.
        sparse: which weights are sparse or dense, if the default does not fit: a mapping from
            names, patterns, classes, modules or parameters, such as
            ``{nn.LSTM: True, "encoder.*": False}``, or a function of (name, parameter,
            module): :doc:`/how-to/dense-layers`.
        total_steps: how many times :meth:`step` will be called. Updates stop at three quarters.
        t_end: the step from which masks no longer move, if not at three quarters.
        delta_t: steps between updates.
        alpha: the drop fraction at the start, in [0, 1].
        decay: how the drop fraction falls until ``t_end``: ``"cosine"``, ``"linear"`` or
            ``"constant"``.
        seed: the seed of random masks and random growth; rank 0's :func:`torch.initial_seed` by
            default.
        state: the form of optimizer state: ``"live"`` keeps it for live weights only,
            ``"masked"`` keeps it dense, ``"auto"`` is ``"live"`` for element-wise optimizers and
            ``"masked"`` for others.
        regrow: whether a weight that an update drops can grow in the same update: with its value
            and state (``"keep"``, the default), from zero with new state (``"zero"``), or not at
            all (``"never"``).
        example_inputs: an input by which ``method="rigl-struct"`` finds the model's channels: one
            value, a tuple of positional or a mapping of keyword arguments. Only shapes matter; two
            samples suffice. Other methods ignore it.

    Attributes:
        inner: the wrapped optimizer.
        method: the method, an instance.

    Raises:
        TypeError: if an argument has the wrong type, the optimizer cannot be wrapped (SparseAdam,
            a SparseOptimizer), or a weight is complex or has a layout other than ``torch.strided``
            and no ``density=False`` in its param group.
        ValueError: if an argument is out of range, a name is not known, or ``state="live"`` is
            given where state has to be dense (DTensors, an optimizer that is not element-wise).
        NoSparseLayerError: if no weight can be sparse.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model,
        ...     method="rigl", density=0.1, init="erk", total_steps=1000, delta_t=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        >>> round(optimizer.density, 3)
        0.1
        >>> [record.step for record in optimizer.history]
        [10, 20]

    Reference: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        *,
        method: str | Method = "rigl",
        density: float = 0.1,
        init: Init = "erk",
        mask: str | Mapping[str, Tensor] = "random",
        sparse: Selection | None = None,
        total_steps: int | None = None,
        t_end: int | None = None,
        delta_t: int = 100,
        alpha: float = 0.3,
        decay: Decay = "cosine",
        seed: int | None = None,
        state: StateMode = "auto",
        regrow: Regrow | None = None,
        example_inputs: Any = None,
    ) -> None:
        build.check_wrappable(optimizer, model, sparse)
        super().__init__(optimizer)
        method = get_method(method, regrow=regrow)
        self.method = build.complete_method(method, model, example_inputs)
        self._mask_config = build.MaskConfig(check_density("density", density), init, mask, sparse)
        if total_steps is not None:
            total_steps = check_steps("total_steps", total_steps, minimum=1)
        schedule = make_schedule(
            total_steps=total_steps, t_end=t_end, delta_t=delta_t, alpha=alpha, decay=decay
        )
        self._progress = Progress(schedule, total_steps, agreed_generator(seed))
        self._named = build.has_names(optimizer, model)
        self._layers = build.build_layers(
            optimizer.param_groups, model, self._mask_config, self.method, self._progress.generator
        )
        self._state_mode = renamed_mode(state, stacklevel=2)
        backend = make_backend(self._state_mode, optimizer, self._layers)
        self._updater = MaskUpdater(self.method, self._layers, backend, self._progress)
        self._first_step_checks = FirstStepChecks(self._updater, by_size=mask == "magnitude")
        self._accountant = Accountant(model)
        build.check_keeps_zeros(self._layers, self._mask_config, self.method)
        build.check_ranks_step_together(optimizer, self.method)
        detach_previous_wrapper(optimizer)
        self._attach()
        self._backup = WeightBackup(self._layers)
        self._start_masking(self._layers)
        self._updater.check_horizon()

    # The interface of torch.optim.Optimizer.

    @disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the masks if this is an update step, else step the inner optimizer.

        Args:
            closure: a function that evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or the result of the inner optimizer.

        Raises:
            RuntimeError: after :meth:`detach`, or if another SparseOptimizer, made later, masks one
                of the weights.
            RankMismatchError: if ranks with the same gradients would choose different masks, or, at
                the first step, have different ones; or if masks will move under ``join()`` of
                ``DistributedDataParallel``, where ranks may make different numbers of steps.
            ValueError: if the method needs a horizon and has none.
        """
        self._hooks.require_attached("step")
        # A scheduler of the inner optimizer reads this flag to check that step() came first.
        self.inner._opt_called = True  # type: ignore[attr-defined]
        self._follow_weights()
        # With a closure there are no gradients yet, so their absence says nothing.
        if closure is None and checkpoint.only_makes_state(self.inner, self._gradients):
            self._backup.put_back()
            return self.backend.step()
        checks = self._first_step_checks
        if not checks.is_checked or (checks.made_alone and is_distributed()):
            closure = checks.check(self.model, closure, self._gradients)
            self._backup.discard()
        updater, step = self._updater, self._progress.steps + 1
        if updater.is_due:
            loss = evaluate(closure)
            were_masked = self._hooks.flag.has_masked
            updater.update(step, self._gradients(), self.model, were_masked=were_masked)
            warn_of_departed(updater, self.model, stacklevel=6)
        else:
            if updater.sees_every_step:
                closure = updater.accumulating(closure, self._gradients)
            loss = self.backend.step(closure)
            if updater.is_prepared:
                updater.undo_preparation()
        self._progress.steps = step
        self._hooks.flag.has_masked = False
        self._plan_next_step()
        return loss

    @disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, by the inner optimizer's ``zero_grad()``."""
        self._hooks.undo_after_overflow(self._gradients)
        self._hooks.flag.has_masked = False
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; weights in it that can be sparse get masks by the same rules.

        Layers whose weight is no longer in any param group, nor in the model, are forgotten, as
        when a head was replaced. If a weight in the group cannot be masked, nothing is added.

        Raises:
            RuntimeError: after :meth:`detach`; or after unpickling, if the optimizer was made with
                a model, which is not in the pickle.
            TypeError: if a weight is of a kind that can't be masked.
            ValueError: if a density is wrong, if a weight has the name of a layer, or if the method
                is ``rigl-struct``, which takes no further layers.
        """
        self._hooks.require_attached("add the group to")
        self.materialize()
        layers = add_group(
            param_group, self.model, self._mask_config, self._updater, named=self._named
        )
        self._hooks.note_layers()
        self._backup.add(layers)
        self._start_masking(layers)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state dict with masks and progress in it.

        Its top level has only ``state`` and ``param_groups``. See the page on checkpoints.

        Raises:
            RuntimeError: if a sparse layer's weight was removed from the param groups.
        """
        self.materialize()
        self._follow_weights()
        self._hooks.undo_preparation()
        self._before_saving()
        live_only = isinstance(self.backend, LiveState) and not self._hooks.are_removed
        saved = checkpoint.attach(self._updater, named=self._named, live_only=live_only)
        return self._after_saving(saved)

    def dense_state_dict(self) -> dict[str, Any]:
        """Return a state dict that a plain optimizer of the inner optimizer's class loads.

        State tensors have the weights' shapes. Weights that are not live have the state of a new
        parameter. Nothing changes, and training can continue.

        Raises:
            RuntimeError: if a sparse layer's weight was removed from the param groups.

        Example:
            >>> import torch
            >>> from sparseopt import SparseOptimizer
            >>> model = torch.nn.Linear(32, 16)
            >>> optimizer = SparseOptimizer(torch.optim.Adam(model.parameters()), model,
            ...                             density=0.25, total_steps=100)
            >>> model(torch.randn(8, 32)).square().mean().backward()
            >>> optimizer.step()
            >>> plain = torch.optim.Adam(model.parameters())
            >>> plain.load_state_dict(optimizer.dense_state_dict())
            >>> plain.state[model.weight]["exp_avg"].shape
            torch.Size([16, 32])
        """
        self.materialize()
        self._follow_weights()
        return checkpoint.without_masks(self.backend)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore masks, optimizer state, schedule, history and random state.

        The schedule of the checkpoint replaces the schedule given at construction. Live and
        masked state load into either mode. If the checkpoint does not fit, nothing changes.

        Raises:
            CheckpointError: if the state dict belongs to a plain optimizer, another method, other
                layers, or an inner optimizer of another class that lacks a setting of this one.
            RuntimeError: after :meth:`detach`, or if a sparse layer's weight was removed from the
                param groups.
            ValueError: if the inner optimizer refuses the state dict.
        """
        self._hooks.require_attached("load into")
        self.materialize()
        self._follow_weights()
        state_dict = self._before_loading(dict(state_dict))
        saved = checkpoint.extract(state_dict, self._updater, self.model, named=self._named)
        checkpoint.warn_of_other_settings(saved, self._updater, mask=self._mask_config.mask)
        self.inner.load_state_dict(saved.inner)
        share_local_state(self.inner)
        self._backup.put_back()
        self._updater.forget_preparation()
        checkpoint.restore(saved, self._updater)
        self._first_step_checks.is_checked = False
        self._plan_next_step()
        self._after_loading()

    def __getstate__(self) -> dict[str, Any]:
        self.materialize()
        # The user pickles the model separately. Only methods that prepare it depend on it.
        model = self.model if self.method.prepares_forward else None
        kept = {**super().__getstate__(), MODEL: None if model is None else unwrapped(model)}
        del kept["_accountant"], kept["_hooks"]
        # sparse= has no use without the model, and can seldom be pickled.
        kept["_mask_config"] = dataclasses.replace(self._mask_config, sparse=None)
        return {**kept, DETACHED: self._hooks.are_removed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_detached, model = state.pop(DETACHED, False), state.pop(MODEL, None)
        super().__setstate__({"_accountant": Accountant(model), **state})
        self._attach()
        self._hooks.mask_gradients(self._layers)
        self._plan_next_step()
        if was_detached:
            self._hooks.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseOptimizer:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        unpickled = {"_accountant": self._accountant, "_mask_config": self._mask_config}
        state = {**self.__getstate__(), **unpickled, MODEL: None}
        clone.__setstate__(copy.deepcopy(state, memo))
        return clone

    # Properties and reports: nothing here changes the optimizer.

    @property
    def layers(self) -> list[SparseLayer]:
        """All layers that can be sparse, in the model's order; dense layers included."""
        return list(self._layers)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The present masks by layer name, bool tensors of the weights' shapes, true where live.

        They are new tensors at every call: pass changed masks to :meth:`set_masks`.
        """
        return {layer.name: layer.mask for layer in self._layers}

    @property
    def density(self) -> float:
        """Live weights over all weights of the layers."""
        live = sum(layer.live for layer in self._layers)
        return live / sum(layer.numel for layer in self._layers)

    @property
    def history(self) -> list[UpdateRecord]:
        """One record for each update so far."""
        return list(self._progress.history)

    @property
    def steps(self) -> int:
        """Calls of :meth:`step` so far, update steps included."""
        return self._progress.steps

    @property
    @disable_dynamo
    def is_update_step(self) -> bool:
        """Whether the next call of :meth:`step` moves the masks."""
        return self._updater.is_due

    @property
    def model(self) -> nn.Module | None:
        """The model given at construction, or ``None``; only ``rigl-struct`` pickles it."""
        return self._accountant.model

    def summary(self) -> str:
        """Return a table by layer: shape, densities, live weights, and moves of the last update.

        The target is the density at the end of training. Methods that move live weights between
        layers, or compare magnitudes across layers, meet the targets of all layers together.
        """
        warn_of_departed(self._updater, self.model, stacklevel=3)
        return summary_table(self._layers)

    def flops(
        self,
        model: nn.Module | None = None,
        example_inputs: Any = None,
        *more_inputs: Any,
        samples: int | None = None,
    ) -> FlopsReport:
        """Return the cost of inference and training, in FLOPs per sample.

        Args:
            model: the model to count; by default the model given at construction.
            example_inputs: an input of the model, with the batch first: one value, a tuple of
                positional arguments, a mapping of keyword arguments, or a pair of both. A list of
                images inside these is a batch too. By default the first training input is
                replayed, with zeros for floating-point numbers, whose values are not kept.
            more_inputs: deprecated; put them into the tuple ``example_inputs``.
            samples: the number of samples in the input, by default its first dimension. Pass it if
                the batch is not first: 8 for an input ``(sequence, 8, features)``.

        Raises:
            TypeError: if ``samples`` is not a whole number.
            ValueError: if there is no model, no input is known, the model does not run with zeros
                for the recorded floating-point numbers, or ``samples`` is not positive.
        """
        if more_inputs:
            warn_old_spelling(
                "flops(model, input, input)", "flops(model, example_inputs=(input, input))"
            )
            example_inputs = (example_inputs, *more_inputs)
        self.materialize()
        warn_of_departed(self._updater, self.model, stacklevel=3)
        return self._accountant.report(
            model,
            example_inputs,
            samples=samples,
            layers=self._layers,
            method=self.method,
            progress=self._progress,
        )

    def __repr__(self) -> str:
        return (
            f"SparseOptimizer(method={self.method!r}, density={self.density:.4g}, "
            f"layers={len(self._layers)}, steps={self.steps}, inner={self.inner!r})"
        )

    # Methods that change the schedule, the masks or the hooks.

    def set_horizon(self, total_steps: int) -> None:
        """Set how many times :meth:`step` will be called in total; updates stop at three quarters.

        This also replaces an earlier ``t_end=``.

        Raises:
            TypeError: if ``total_steps`` is not a whole number.
            ValueError: if it is not positive.
        """
        self.materialize()
        self._progress.set_horizon(total_steps)
        self._plan_next_step()
        self._updater.check_horizon()

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Change which weights are live now, between two steps, as an update does.

        Weights that drop become zero and lose their optimizer state. Weights that grow start at
        zero, with new state. A layer keeps its new number of live weights, and layers that are not
        named stay as they are. With several ranks this is a collective call, and all ranks get rank
        0's masks. See :doc:`/how-to/schedule`.

        Args:
            masks: bool tensors of the weights' shapes, true where live, by layer name.

        Raises:
            RuntimeError: after :meth:`detach`.
            TypeError: if a mask is not a bool tensor.
            ValueError: if a name or a shape is wrong, if the layer or the method can't have the
                mask, if a sharded mask is not given on all ranks, or if the method is
                ``rigl-struct``. Then nothing changes.

        Example:
            >>> import torch
            >>> from sparseopt import SparseOptimizer
            >>> model = torch.nn.Linear(32, 16)
            >>> optimizer = SparseOptimizer(
            ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
            ...     density=0.25)
            >>> mask = torch.zeros(16, 32, dtype=torch.bool)
            >>> mask[:8] = True
            >>> optimizer.set_masks({"weight": mask})
            >>> optimizer.density, int(model.weight[8:].count_nonzero())
            (0.5, 0)
        """
        self._hooks.require_attached("set masks of")
        self.materialize()
        self._follow_weights()
        set_masks(self._updater, masks, self._backup)
        self._plan_next_step()

    def apply_masks(self, model: nn.Module) -> None:
        """Set the same weights to zero in another model, such as an averaged or a target copy.

        If masks moved in between, an average over several steps is denser than the model at any of
        these steps. If the model does not fit, nothing changes. If only one of the models is
        sharded (FSDP2), this is a collective call.

        Raises:
            ValueError: if ``model`` has no parameter of a layer's name and shape.
        """
        mask_copy(self._layers, model)

    def detach(self) -> None:
        """Remove all hooks and make the inner optimizer's state dense, to train without masks.

        Weights that are not live are zero at that moment, and can move from then on. The same
        happens when this object is garbage-collected.
        """
        self.materialize()
        self._hooks.remove()

    # The interface for objects that swap parameters, state or computation for a while.

    @property
    def backend(self) -> StateBackend:
        """The backend, which steps the inner optimizer and keeps the state of sparse layers."""
        return self._updater.backend

    def use_backend(self, backend: StateBackend) -> None:
        """Replace the backend, which steps the inner optimizer and keeps the state."""
        self._updater.backend = backend

    def materialize(self) -> None:
        """Restore full-size parameters and state if the backend has swapped them out."""
        self.backend.materialize()

    @property
    def gradient_flag(self) -> GradientFlag:
        """The object, shared by all hooks, that says whether gradients are left dense."""
        return self._hooks.flag

    @property
    def holder(self) -> Holder | None:
        """The object that swaps parts of the model now, or ``None``."""
        return self._hooks.holder

    def hold(self, holder: Holder) -> None:
        """End ``holder`` when this optimizer is detached, collected, or given other weights.

        Raises:
            RuntimeError: after :meth:`detach`.
            ValueError: if there is another holder.
        """
        self._hooks.hold(holder)

    def release(self, holder: Holder) -> None:
        """Forget ``holder``, which has ended."""
        self._hooks.release(holder)

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the first training input, ``(args, kwargs)``, if known, with zeros for floats."""
        return self._accountant.example_inputs()

    # Attaching the wrapper to the model and its weights.

    def _attach(self) -> None:
        """Register hooks on the model; all hooks are removed when this object is collected."""
        self._first_step_checks.is_checked = False
        self._hooks = ModelHooks(self, self._updater, self._accountant.recorder)
        if self.model is not None:
            self._hooks.add_to_model(self.model, self._before_first_forward)

    def _before_first_forward(self) -> None:
        refuse_flat_parameters(self.inner, self.model)
        self._follow_weights()

    def _follow_weights(self) -> None:
        """Follow weights that were moved, and bind layers to parameters that replaced weights."""
        replaced = self._hooks.follow_weights()
        if not replaced:
            return
        self._hooks.remove_for_replacement()
        self.backend.to_dense()
        rebind(replaced, self.inner)
        self.use_backend(make_backend(self._state_mode, self.inner, self._layers))
        self._attach()
        for layer in self._layers:
            # to_dense() left the state of layers that are in no group as it was.
            if self.backend.trains(layer):
                self.backend.load_layer(layer)
        self._hooks.mask_gradients(self._layers)
        self._plan_next_step()

    def _start_masking(self, layers: Sequence[SparseLayer]) -> None:
        self._hooks.detach_other_optimizers(layers)
        for layer in layers:
            layer._clear_dropped_()
            self.backend.load_layer(layer)
        self._updater.state.begin(layers)
        self._hooks.mask_gradients(layers)
        self._plan_next_step()

    def _plan_next_step(self) -> None:
        self._updater.plan_next_step()
        self._hooks.flag.dense_gradients = self._updater.needs_dense_gradients
        if self._hooks.holder is not None:
            self._hooks.holder.masks_changed()
