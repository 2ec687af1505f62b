"""Every wrapped optimizer of torch and of five packages equals masking by hand.

By hand: a plain optimizer on a dense model. After every step its weights and all state that has a
value for each weight are masked by index, and before it the gradients are. What is per weight is
shown by a permutation (`tests.support.per_weight`). Other state is left alone; where it has the
weight's shape it describes the old live weights, and an update that moves them has the optimizer
create all of it again.
"""

import random
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked, HandMaskedByClosure
from tests.support.catalogue import fresh_value
from tests.support.looking import assert_same_weights
from tests.support.nets import CLASSES, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.packaged_optimizers import LEFT_OUT, Packaged, packaged_optimizers
from tests.support.per_weight import (
    has_shape,
    names_per_weight,
    needs_closure,
    needs_graph,
    switch_to_training,
    tensors_by_path,
)
from tests.support.seeding import seed_torch

# The packages raise warnings about their own code.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 12
SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}

#: A few of every kind, tried whenever tests run.
REPRESENTATIVE = (
    "torch-Adagrad",
    "torch-AdamW",
    "torch-Muon",
    "torch-Rprop",
    "pytorch_optimizer-aggmo",
    "pytorch_optimizer-lion",
    "pytorch_optimizer-conda",
    "pytorch_optimizer-dash",
    "pytorch_optimizer-shampoo",
    "pytorch_optimizer-soap",
    "pytorch_optimizer-vsgd",
    "timm-adamp",
    "timm-lamb",
    "timm-rmsproptf",
    "bitsandbytes-AdEMAMix8bit",
    "bitsandbytes-AdamW32bit",
    "bitsandbytes-AdamW8bit",
    "transformers-adafactor",
)
#: They draw random numbers, which a permutation doesn't permute.
PER_WEIGHT_AND_RANDOM = {"Gravity": {"v"}, "SophiaH": {"hessian", "hessian_moment"}}
#: The initial value of state that is not zero, by class, as a function of the groups' options.
FRESH: dict[str, Mapping[str, float | str]] = {
    "Adai": {"beta1_prod": 1.0},
    "DAdaptAdaGrad": {"alpha_k": 1e-6},
    "RMSpropTF": {"square_avg": 1.0},
    "VSGD": {"bg": "pbg2", "bhg": "pbhg2"},
    "Yogi": {"exp_avg": 1e-6, "exp_avg_sq": 1e-6},
}


class Convolutional(nn.Module):
    """A convolution, a rectangular and a square matrix, and a small head, with biases."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.wide = nn.Linear(72, 16)
        self.square = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x)).flatten(1)
        return self.head(F.relu(self.square(F.relu(self.wide(x)))))


class Matrices(nn.Module):
    """Matrices without biases, for optimizers that take nothing else."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(108, 16, bias=False)
        self.square = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.square(F.relu(self.wide(x.flatten(1))))))


class Large(Matrices):
    """Matrices of 4096 entries and more, from which on state is kept in a few bits."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(108, 64)
        self.square = nn.Linear(64, 64)
        self.head = nn.Linear(64, CLASSES)


MATRICES_ONLY = frozenset(
    {
        "torch-Muon",
        "pytorch_optimizer-spectralsphere",
        "transformers-apollo_adamw",
        "transformers-galore_adafactor",
        "transformers-galore_adamw",
    }
)


def net_for(optimizer: Packaged) -> nn.Module:
    if optimizer.takes_large:
        return make(Large)
    return make(Matrices if str(optimizer) in MATRICES_ONLY else Convolutional)


@cache
def shown_per_weight(packaged: Packaged, shape: tuple[int, ...]) -> dict[str, bool]:
    """`names_per_weight` of an optimizer, once for all tests of it."""
    return names_per_weight(packaged.build, shape)


class ByHand(HandMasked):
    """Masks and resets only state that was shown to have one value a weight."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, oracle: Any, packaged: Packaged):
        self.per_weight = {
            shape: dict(shown_per_weight(packaged, shape))
            for shape in {
                tuple(dict(model.named_parameters())[name].shape) for name in oracle.masks
            }
        }
        random_names = PER_WEIGHT_AND_RANDOM.get(type(optimizer).__name__, set())
        for names in self.per_weight.values():
            names.update(dict.fromkeys(random_names & names.keys(), True))
        switch_to_training(optimizer)
        super().__init__(model, optimizer, oracle, fresh=fresh_of(optimizer))

    def step(self, index: int | None = None) -> None:
        self.optimizer.zero_grad()
        loss = loss_of(self.model, self.t + 1)
        loss.backward(create_graph=needs_graph(self.optimizer))
        if needs_graph(self.optimizer) and not self.oracle.is_update(self.t + 1):
            # The mask is a part of the graph: curvature is of live weights.
            for name, mask in self.oracle.masks.items():
                parameter = self.params[name]
                live = torch.from_numpy(mask).view(parameter.shape)
                parameter.grad = torch.where(live, parameter.grad, 0.0)
        self.apply()

    def _update(self) -> None:
        before = {name: mask.copy() for name, mask in self.oracle.masks.items()}
        super()._update()
        for name, mask in self.oracle.masks.items():
            parameter = self.params[name]
            if not np.array_equal(mask, before[name]) and self.has_state_to_begin_anew(parameter):
                self.optimizer.state.pop(parameter, None)

    def has_state_to_begin_anew(self, parameter: nn.Parameter) -> bool:
        """Whether state of the weight's shape is no value of a weight and no factor."""
        shown = self.per_weight[tuple(parameter.shape)]
        entry = self.optimizer.state.get(parameter, {})
        return any(
            not shown[path]
            and not (may_be_factor(parameter) and self.is_factor(path))
            and not all(is_flag(tensor) for tensor in tensors)
            and zero_code(entry, path) is None
            for path, tensors in tensors_by_path(entry).items()
            if path in shown
        )

    def is_factor(self, path: str) -> bool:
        """Whether it has another shape than the parameter's elsewhere, as preconditioners have."""
        return any(
            not has_shape(tensor, tuple(parameter.shape))
            for parameter, entry in self.optimizer.state.items()
            if torch.is_tensor(parameter) and parameter.ndim > 1
            for tensor in tensors_by_path(entry).get(path, [])
        )

    def _reset(self, name: str, where: np.ndarray) -> None:
        parameter = self.params[name]
        positions = torch.from_numpy(where).view(parameter.shape)
        entry = self.optimizer.state.get(parameter, {})
        with torch.no_grad():
            parameter.masked_fill_(positions, 0.0)
            by_path = tensors_by_path(entry)
            for key, shown in self.per_weight[tuple(parameter.shape)].items():
                code = zero_code(entry, key)
                for tensor in by_path.get(key, []):
                    if code is not None:
                        bits = getattr(tensor, "codes", tensor).view(torch.uint8)
                        bits.masked_fill_(positions, code)
                    elif shown and has_shape(tensor, tuple(parameter.shape)):
                        fresh = self.fresh.get(key, fresh_value(self.optimizer, key))
                        tensor.masked_fill_(positions, fresh)


class ByHandWithClosure(HandMaskedByClosure, ByHand):
    """The same for optimizers that evaluate the model inside of their own step."""


def zero_code(entry: Mapping[str, Any], key: str) -> int | None:
    """The code for 0 of state with 8 bits a weight."""
    value = entry.get(key)
    codes = getattr(value, "codes", value)
    if not torch.is_tensor(codes) or codes.element_size() != 1 or is_flag(codes):
        return None
    if codes.dtype != torch.uint8 or key.endswith("::quantized"):
        return 0
    levels = getattr(value, "qmap", entry.get(key.replace("state", "qmap")))
    if levels is None or len(levels) != 256 or not bool((levels == 0).any()):
        return None
    return int((levels == 0).nonzero()[0])


def may_be_factor(parameter: nn.Parameter) -> bool:
    """Whether row or column statistics may have the weight's shape, as for a square matrix."""
    sizes = [size for size in parameter.shape if size > 1]
    return len(sizes) < 2 or (parameter.ndim == 2 and sizes[0] == sizes[1])


def is_flag(value: Any) -> bool:
    return torch.is_tensor(value) and value.dtype == torch.bool


def fresh_of(optimizer: Optimizer) -> dict[str, float]:
    options = optimizer.param_groups[0]
    known = FRESH.get(type(optimizer).__name__, {})
    return {
        key: float(options[value]) if isinstance(value, str) else value
        for key, value in known.items()
    }


def seeded(t: int) -> None:
    """Some of them draw random numbers, from all three sources."""
    seed_torch(t)
    random.seed(t)
    np.random.seed(t)  # noqa: NPY002


def sparse_step(model: nn.Module, optimizer: SparseOptimizer, t: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = loss_of(model, t)
            loss.backward(create_graph=needs_graph(optimizer.inner))
        return loss

    if needs_closure(optimizer.inner):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def assert_equals_masking(packaged: Packaged, method: str) -> None:
    model, own_model = net_for(packaged), net_for(packaged)
    names = tuple(name for name, p in own_model.named_parameters() if p.ndim > 1)
    oracle = oracle_for(method, own_model, names=names, **SETTINGS)
    seeded(0)
    own = packaged.build(own_model)
    kind = ByHandWithClosure if needs_closure(own) else ByHand
    by_hand = kind(own_model, own, oracle, packaged)
    seeded(0)
    optimizer = SparseOptimizer(packaged.build(model), model, method=method, **SETTINGS)
    switch_to_training(optimizer)
    start = [p.detach().clone() for p in model.parameters()]
    for t in range(1, STEPS + 1):
        seeded(t)
        sparse_step(model, optimizer, t)
        seeded(t)
        by_hand.step()
        assert all(torch.isfinite(p).all() for p in own_model.parameters())
        assert_same_weights(model, own_model)
        for layer in optimizer.layers:
            assert not layer.weight[~layer.mask].any(), layer.name
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def cases() -> list[Any]:
    """All of them as parameters; slow, unless they stand for their kind."""
    found = []
    for packaged in packaged_optimizers():
        marks = [] if str(packaged) in REPRESENTATIVE else [pytest.mark.slow]
        if packaged.missing:
            marks.append(pytest.mark.skip(reason=f"{packaged.missing} is not installed"))
        found.append(pytest.param(packaged, id=str(packaged), marks=marks))
    return found


@pytest.mark.parametrize("packaged", cases())
def test_optimizer_under_fixed_masks_equals_masking_by_hand(packaged):
    assert_equals_masking(packaged, "static")


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("packaged", cases())
def test_optimizer_under_moving_masks_equals_masking_by_hand(packaged, method):
    """Weights that grow begin with the state of a fresh parameter."""
    assert_equals_masking(packaged, method)


def test_lists_name_only_optimizers_that_exist():
    known = {str(packaged) for packaged in packaged_optimizers()} | LEFT_OUT.keys()
    named = {name for name in REPRESENTATIVE if find_spec(name.split("-")[0]) is not None}
    assert named <= known


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("torch-AdamW", {"exp_avg": True, "exp_avg_sq": True}),
        ("torch-Muon", {"momentum_buffer": True}),
        ("pytorch_optimizer-soap", {"exp_avg": True, "exp_avg_sq": False}),
        ("pytorch_optimizer-conda", {"exp_avg": True, "exp_avg_sq": False}),
        ("bitsandbytes-Adam8bit", {"state1": False, "state2": False}),
    ],
)
def test_state_is_shown_to_be_per_weight_by_permuting_it(name, shown):
    package, kind = name.split("-")
    pytest.importorskip(package, reason=f"{package} is not installed")
    assert names_per_weight(Packaged(package, kind).build, (64, 80)) == shown
