"""``torch.cat`` along channels stays in the kernels' layout, and computes what torch computes."""

import copy
import functools
import pickle
from abc import ABC
from typing import ClassVar, Generic, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from sparseopt import speed_up
from sparseopt.speedup.live_training import concatenation
from sparseopt.speedup.live_training.concatenation import ConcatenatingModules, concatenated
from sparseopt.speedup.live_training.layout import in_kernel_layout, to_kernel_layout
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    DenseNet,
    TorchvisionDenseNet,
    full_plan,
    images,
    loss_of,
    make,
    train,
    wrap,
)

WIDTHS = [(3, 5), (1, 7, 2), (16,), (33, 1)]


def maps(*widths, batch=6, dtype=torch.float32, inside=True):
    torch.manual_seed(0)
    made = [torch.randn(batch, width, 4, 3).to(dtype) for width in widths]
    return [(to_kernel_layout(x) if inside else x).detach().requires_grad_() for x in made]


def gradients(result, inputs):
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    return torch.autograd.grad((result * weights).sum(), inputs)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(widths, dtype):
    inputs = maps(*widths, dtype=dtype)
    found, expected = concatenated(inputs, 1), torch.cat(inputs, 1)
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    assert in_kernel_layout(found)
    mine, theirs = gradients(found, inputs), gradients(expected, inputs)
    for gradient, other in zip(mine, theirs, strict=True):
        assert torch.equal(gradient, other)
        assert in_kernel_layout(gradient)


def test_map_that_was_outside_comes_in_and_its_gradient_goes_out():
    inputs = maps(3) + maps(5, inside=False)
    found, expected = concatenated(inputs, -3), torch.cat(inputs, 1)
    assert torch.equal(found, expected)
    assert in_kernel_layout(found)
    mine, theirs = gradients(found, inputs), gradients(expected, inputs)
    assert all(map(torch.equal, mine, theirs))
    assert in_kernel_layout(mine[0])
    assert mine[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("autocast", [False, True])
def test_number_formats_are_promoted_as_by_torch(autocast):
    inputs = maps(3) + maps(5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = concatenated(inputs, 1), torch.cat(inputs, 1)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
    mine, theirs = gradients(found, inputs), gradients(expected, inputs)
    assert [one.dtype for one in mine] == [torch.float32, torch.bfloat16]
    assert all(map(torch.equal, mine, theirs))


def test_derivatives_of_second_order():
    inputs = [x.detach().double().requires_grad_() for x in maps(1, 2, batch=2)]
    assert torch.autograd.gradgradcheck(lambda *xs: concatenated(xs, 1).pow(3), inputs)


def test_result_can_be_changed_in_place():
    inputs = maps(3, 2)
    concatenated(inputs, 1).relu_().sum().backward()
    for x in inputs:
        assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: (maps(3, 5, inside=False), 1),
        lambda: (maps(3, 5, batch=1), 1),
        lambda: (maps(3, 3), 0),
        lambda: (maps(3, 3), 2),
        lambda: (maps(3, 3), -1),
        lambda: (maps(3),),
        lambda: (maps(3) + maps(3, batch=5), 1),
        lambda: ([*maps(3), torch.ones(0)], 1),
        lambda: ([*maps(3), torch.ones(4, 3)], 1),
        lambda: ([], 1),
        lambda: (maps(3)[0], 1),
        lambda: ([None], 1),
    ],
)
def test_all_else_is_left_to_torch(arguments):
    assert concatenated(*arguments()) is None


def test_given_output_is_left_to_torch():
    assert concatenated(maps(3, 5), 1, out=torch.empty(6, 8, 4, 3)) is None


class Inner(nn.Module):
    """Concatenates in its own forward pass."""

    def __init__(self):
        super().__init__()
        self.size = 3

    def forward(self, x, *, scale=1):
        return torch.cat((x, scale * x), 1)


def by_alias(x, y):
    return torch.concat((x, y), -3)


class Concatenations(nn.Module):
    """Calls all names of the function, from a method, a static method and a closure."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        def closure():
            return torch.concatenate([x, x], axis=1)

        return self.inner(x, scale=2), self.method(x), self.static(x), closure()

    def method(self, x):
        return torch.cat(tensors=[x, x], dim=1)

    @staticmethod
    def static(x):
        return by_alias(x, x)


def test_all_calls_in_a_forward_pass_stay_in_the_layout():
    model = Concatenations()
    x = to_kernel_layout(torch.randn(4, 3, 2, 2))
    expected = model(x)
    assert not any(map(in_kernel_layout, expected))
    modules = ConcatenatingModules(model)
    modules.exchange()
    found = model(x)
    assert all(map(in_kernel_layout, found))
    assert all(map(torch.equal, found, expected))
    # Outside of the forward pass nothing is changed.
    assert not in_kernel_layout(model.method(x))
    modules.put_back()
    assert not any(map(in_kernel_layout, model(x)))
    assert [type(module) for module in model.modules()] == [Concatenations, Inner]


def test_error_in_a_forward_pass_ends_the_mode():
    model = Inner()
    ConcatenatingModules(model).exchange()
    with pytest.raises(TypeError):
        model(None)
    x = to_kernel_layout(torch.ones(4, 3, 2, 2))
    assert not in_kernel_layout(torch.cat([x, x], 1))
    with pytest.raises(RuntimeError, match="dimension"):
        Concatenations().inner.forward(x, scale=torch.ones(2, 2, 2, 2, 2))


@pytest.mark.parametrize("fails", [False, True])
def test_hook_that_exchanges_its_module_may_enter_the_mode(fails):
    model = Inner()
    modules = ConcatenatingModules(model)

    def before(*_):
        handle.remove()
        modules.exchange()
        modules.enter(model)

    handle = model.register_forward_pre_hook(before)
    x = to_kernel_layout(torch.ones(4, 3, 2, 2))
    if fails:
        with pytest.raises(TypeError):
            model(None)
    else:
        assert in_kernel_layout(model(x))
    assert not in_kernel_layout(torch.cat([x, x], 1))
    assert not model._forward_hooks
    assert in_kernel_layout(model(x))
    modules.put_back()
    modules.enter(model)
    assert not in_kernel_layout(model(x))


def test_exchanged_class_looks_like_the_original():
    model = Inner()
    ConcatenatingModules(model).exchange()
    assert isinstance(model, Inner)
    assert type(model).__name__ == "Inner"
    assert repr(model) == repr(Inner())
    assert type(copy.deepcopy(model)) is Inner
    assert type(copy.copy(model)) is Inner
    assert type(pickle.loads(pickle.dumps(model))) is Inner


class Refusing(Inner):
    """Allows no subclass, as a registry of models may."""

    def __init_subclass__(cls):
        raise TypeError("no subclasses")


class WithState(Inner):
    """Leaves something out of copies."""

    def __getstate__(self):
        return {**vars(self), "size": 0}


def test_class_without_subclasses_stays():
    model = Refusing()
    modules = ConcatenatingModules(model)
    modules.exchange()
    assert type(model) is Refusing
    modules.put_back()
    assert type(model) is Refusing


class Registering(Inner):
    """Keeps its subclasses by name."""

    kinds: ClassVar = {}

    def __init_subclass__(cls):
        Registering.kinds[cls.__name__] = cls


class Registered(Registering):
    pass


class RegisteringMeta(type):
    kinds: ClassVar = {}

    def __init__(cls, name, bases, body):
        super().__init__(name, bases, body)
        RegisteringMeta.kinds[name] = cls


class RegisteredByMeta(Inner, metaclass=RegisteringMeta):
    pass


@pytest.mark.parametrize("registry", [Registering, RegisteringMeta])
def test_registry_of_subclasses_is_not_changed(registry):
    (kind,) = registry.kinds.values()
    model = kind()
    ConcatenatingModules(model).exchange()
    assert list(registry.kinds.values()) == [kind]
    assert type(model) is kind


T = TypeVar("T")


class Abstract(Inner, ABC, Generic[T]):
    pass


def test_generic_and_abstract_classes_are_exchanged():
    model = Abstract()
    ConcatenatingModules(model).exchange()
    assert in_kernel_layout(model(to_kernel_layout(torch.ones(4, 3, 2, 2))))


def joining(function):
    @functools.wraps(function)
    def call(self, x):
        return torch.cat([x, x], 1)

    return call


def doubling(function):
    @functools.wraps(function)
    def call(self, x):
        return x * 2

    return call


def wrapping_itself():
    call = joining(torch.relu)
    call.__wrapped__ = call
    return call


@pytest.mark.parametrize(
    ("method", "is_exchanged"),
    [
        (joining(torch.cat), True),
        (joining(nn.ReLU()), True),
        (doubling(torch.relu), False),
        (doubling(joining(torch.relu)), True),
        (wrapping_itself(), True),
    ],
)
def test_code_of_wrappers_is_read(method, is_exchanged):
    kind = type("Joins", (nn.Module,), {"forward": method})
    model = kind()
    ConcatenatingModules(model).exchange()
    assert (type(model) is not kind) == is_exchanged


def test_graph_module_can_be_recompiled():
    model = torch.fx.symbolic_trace(Inner())
    modules = ConcatenatingModules(model)
    x = to_kernel_layout(torch.randn(4, 3, 2, 2))
    expected = model(x)
    modules.exchange()
    model.recompile()
    assert torch.equal(model(x), expected)
    modules.put_back()
    model.recompile()
    assert torch.equal(model(x), expected)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Scaled(nn.Module):
    """Concatenates, and multiplies by two parameters."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.ones(1)) for _ in range(2))

    def forward(self, x):
        return torch.cat([x, x], 1) * self.one * self.two


def joined(x):
    return torch.cat([x, x], 1)


def test_parametrizations_may_change_while_modules_are_exchanged():
    x = to_kernel_layout(torch.randn(4, 3, 2, 2))
    model = Scaled()
    parametrize.register_parametrization(model, "one", Doubled())
    modules = ConcatenatingModules(model)
    modules.exchange()
    assert torch.equal(model(x), 2 * joined(x))
    parametrize.register_parametrization(model, "two", Doubled())
    assert torch.equal(model(x), 4 * joined(x))
    parametrize.remove_parametrizations(model, "one", leave_parametrized=False)
    assert torch.equal(model(x), 2 * joined(x))
    modules.put_back()
    assert torch.equal(model(x), 2 * joined(x))
    parametrize.remove_parametrizations(model, "two", leave_parametrized=False)
    assert torch.equal(model(x), joined(x))
    assert type(model) is Scaled


@pytest.mark.parametrize("removed_after", [False, True])
def test_module_that_is_parametrized_after_the_exchange_is_put_back(removed_after):
    x = to_kernel_layout(torch.randn(4, 3, 2, 2))
    model = Scaled()
    modules = ConcatenatingModules(model)
    modules.exchange()
    parametrize.register_parametrization(model, "one", Doubled())
    assert in_kernel_layout(model(x))
    assert torch.equal(model(x), 2 * joined(x))
    if not removed_after:
        parametrize.remove_parametrizations(model, "one", leave_parametrized=False)
    modules.put_back()
    assert not in_kernel_layout(model(x))
    if removed_after:
        modules.exchange()
        assert torch.equal(model(x), 2 * joined(x))
        assert torch.equal(copy.deepcopy(model)(x), 2 * joined(x))
        modules.put_back()
        parametrize.remove_parametrizations(model, "one", leave_parametrized=False)
    assert torch.equal(model(x), joined(x))
    assert type(model) is Scaled


class Interrupted(Inner):
    def forward(self, x):
        if x is None:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("again", ["put back", "enter"])
def test_interrupted_pass_leaves_no_mode_for_long(again):
    model = Interrupted()
    modules = ConcatenatingModules(model)
    modules.exchange()
    handle = model.register_forward_pre_hook(lambda *_: modules.enter(model))
    with pytest.raises(KeyboardInterrupt):
        model(None)
    x = to_kernel_layout(torch.ones(4, 3, 2, 2))
    with torch.device("cpu"):  # another mode above
        depth = torch._C._len_torch_function_stack()
        if again == "enter":
            assert in_kernel_layout(model(x))
            handle.remove()
        else:
            modules.put_back()
        assert torch._C._len_torch_function_stack() == depth - 1
        assert not in_kernel_layout(joined(x))
    assert torch._C._len_torch_function_stack() == 0
    assert not model._forward_hooks


def test_copies_are_made_in_the_way_of_the_class():
    model = WithState()
    ConcatenatingModules(model).exchange()
    copied = copy.deepcopy(model)
    assert (type(copied), copied.size, model.size) == (WithState, 0, 3)


def test_modules_without_concatenation_keep_their_class():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout())
    ConcatenatingModules(model).exchange()
    assert type(model) is nn.Sequential


@needs_kernels
def test_only_calls_between_exchanged_modules_pass_through_the_mode(monkeypatch):
    """It would cost a microsecond for every use of a tensor in them."""
    names = []

    class Counting(concatenation._Concatenates):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs)

    monkeypatch.setattr(concatenation, "_Concatenates", Counting)
    model = make(TorchvisionDenseNet)
    optimizer = wrap(model, method="static", init="uniform")
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    names.clear()
    loss_of(model)
    assert names == ["cat"] * 7
    assert optimizer.layers


class Checkpointed(DenseNet):
    """Checkpoints its blocks."""

    reentrant = False

    def forward(self, x):
        x = checkpoint(self.dense1, self.stem(x), use_reentrant=self.reentrant)
        x = self.mean(self.narrow(self.relu(self.norm1(x))))
        x = checkpoint(self.dense2, x, use_reentrant=self.reentrant)
        return self.head(self.last(F.relu(self.norm2(x))).flatten(1))


class CheckpointedReentrant(Checkpointed):
    reentrant = True


class MemoryEfficient(TorchvisionDenseNet):
    """Checkpoints a method, which runs again outside of the forward pass of its module."""

    def __init__(self):
        super().__init__(memory_efficient=True)


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Checkpointed, DenseNet),
        (CheckpointedReentrant, DenseNet),
        (MemoryEfficient, TorchvisionDenseNet),
    ],
)
def test_checkpointing_goes_the_same_way_over_an_update(kind, plain):
    dense, model = make(plain), make(kind)
    dense_optimizer, optimizer = wrap(dense, method="rigl"), wrap(model, method="rigl")
    speed_up(model, optimizer, plan=full_plan(dense, dense_optimizer))
    losses = train(model, optimizer, 7)
    assert losses == pytest.approx(train(dense, dense_optimizer, 7), rel=1e-3)
    for name, mask in dense_optimizer.masks.items():
        assert torch.equal(optimizer.masks[name], mask)


class DropsConcatenated(nn.Module):
    """Checkpoints a method that concatenates, and drops entries of the result."""

    reentrant = False

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(3, 3, 3) for _ in range(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)

    def block(self, x):
        return self.drop(torch.cat([self.left(x), self.right(x)], 1))


@needs_kernels
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_dropout_of_concatenated_maps_again(reentrant):
    model = make(DropsConcatenated)
    optimizer = wrap(model, method="static", init="uniform")
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    model.reentrant = reentrant
    y = model(images())
    y.sum().backward()
    kept = (y != 0).sum((0, 2, 3)).float() * 2
    torch.testing.assert_close(torch.cat([model.left.bias.grad, model.right.bias.grad]), kept)
    assert type(model.left) is not nn.Conv2d


@needs_kernels
@pytest.mark.parametrize(
    "of",
    [
        lambda x, y: F.relu(x),
        lambda x, y: F.relu(x, inplace=True),
        lambda x, y: x.add_(y),
        lambda x, y: F.relu(x + y),
        lambda x, y: torch.relu_(torch.add(x, y)),
        lambda x, y: F.gelu(x) * y,
        lambda x, y: F.silu(x - y),
        lambda x, y: F.dropout(x, 0.5),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: F.leaky_relu(x).clamp(max=1),
    ],
)
def test_functions_that_keep_the_layout(of):
    x, y = maps(6, 6)
    result = of(x * 1, y)
    assert in_kernel_layout(result)
    for gradient in torch.autograd.grad(result.square().sum(), [x, y], allow_unused=True):
        assert gradient is None or in_kernel_layout(gradient)


def test_sum_in_place_keeps_the_layout():
    x, y = maps(3, 3)
    z = x * 1
    z += y
    assert in_kernel_layout(z)
