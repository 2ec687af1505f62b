"""The attributes of a torch optimizer, each read through to the inner optimizer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparseopt.utils.compile import disable_dynamo

__all__ = ["WrappedOptimizer", "share_local_state"]


def share_local_state(optimizer: Optimizer) -> None:
    """Make the ``state`` of a ZeroRedundancyOptimizer the state with which it steps.

    It steps an optimizer of its own, ``.optim``, on the parameters of its rank. Its own ``state``
    is empty at first, and becomes a stale copy after ``load_state_dict()``. Other optimizers do not
    change.
    """
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        optimizer.state = optimizer.optim.state  # type: ignore[attr-defined]


class WrappedOptimizer(Optimizer):
    """An optimizer that shares its parameters and state with the inner optimizer.

    ``param_groups``, ``state`` and ``defaults`` always return the inner optimizer's own objects. A
    copied reference would become stale when a state dict is loaded.

    Args:
        inner: the optimizer to wrap.

    Attributes:
        inner: the wrapped optimizer.
    """

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        share_local_state(inner)
        self._become_an_optimizer()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's param groups themselves, not a copy."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state itself, keyed by parameter.

        With live state the tensors of a sparse layer hold one value a live weight, ``(live,)``, in
        logical order.
        """
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's defaults themselves."""
        # Wrappers of other packages may have no defaults.
        return getattr(self.inner, "defaults", {})

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # Schedule-free optimizers have these methods, and trainers call them wherever they exist.
        if name in {"train", "eval"} and "inner" in self.__dict__:
            return getattr(self.inner, name)
        if name in {"first_step", "second_step"}:
            raise AttributeError(
                f"{name}() of a sharpness-aware optimizer moves weights without the masks: wrap "
                "the other way round, SAM(params, base_optimizer=lambda params, **settings: "
                "SparseOptimizer(torch.optim.SGD(params, **settings), model, ...)), or call "
                "step(closure)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        # Hooks, and a step() that a scheduler has put here, belong to this object and this process.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "step" and not name.startswith("_optimizer_")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._become_an_optimizer()

    def __copy__(self) -> WrappedOptimizer:
        raise TypeError(
            f"copy.copy() of a {type(self).__name__} would share the inner optimizer and all masks "
            "with the original: use copy.deepcopy(), of the optimizer and the model together."
        )

    @disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, by the inner optimizer's ``zero_grad()``."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def _before_saving(self) -> None:
        """Call the users' hooks that run before ``state_dict()``."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)

    def _after_saving(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return ``state_dict``, or what the users' hooks made of it."""
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def _before_loading(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict to load: ``state_dict``, or what the users' hooks made of it."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def _after_loading(self) -> None:
        """Call the users' hooks that run after ``load_state_dict()``."""
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _become_an_optimizer(self) -> None:
        """Create only the hook dictionaries that :class:`torch.optim.Optimizer` keeps.

        Step hooks are shared with the inner optimizer, whose own ``step`` runs without them. So a
        hook runs once, wherever it was registered. An inner optimizer that never called
        ``Optimizer.__init__`` (PostLocalSGDOptimizer, Opacus's DPOptimizer) has no hooks to share.
        """
        inner = self.inner
        self._optimizer_step_pre_hooks = getattr(inner, "_optimizer_step_pre_hooks", OrderedDict())
        self._optimizer_step_post_hooks = getattr(
            inner, "_optimizer_step_post_hooks", OrderedDict()
        )
        self._optimizer_state_dict_pre_hooks = OrderedDict()
        self._optimizer_state_dict_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._patch_step_function()

    def _gradients(self) -> list[Tensor]:
        """Return all gradients of the parameters."""
        return [
            parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
