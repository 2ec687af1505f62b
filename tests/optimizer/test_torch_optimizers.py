"""Every torch optimizer, in every implementation and with every switch, in fp32 and bf16.

Live state and masked state give the same weights as a dense run that is masked by hand. Dropped
weights stay zero, and have the state of a fresh parameter.
"""

import numpy as np
import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.arithmetic import PlainTwin, place_does_not_matter
from tests.support.by_hand import HandMasked, HandMaskedByClosure
from tests.support.catalogue import (
    ELEMENTWISE,
    NEEDS_CLOSURE,
    build,
    elementwise_variants,
    implementations,
    model_for,
    torch_optimizers,
    variants,
)
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_state,
    assert_same_weights,
    logical,
    per_weight_state,
)
from tests.support.nets import make
from tests.support.oracles import oracle_for
from tests.support.training import backward, train, train_step
from tests.support.wrapping import settings_with, wrap

STEPS = 30
SHORT = 8
SETTINGS = settings_with(total_steps=STEPS)


def sparse_run(name, options, state, *, dtype=torch.float32, channels_last=False, steps=STEPS):
    model = make(dtype=dtype, channels_last=channels_last)
    inner = build(name, model.parameters(), **options)
    optimizer = SparseOptimizer(inner, model, method="rigl", state=state, **SETTINGS)
    train(model, optimizer, steps, after=lambda _: assert_dropped_are_fresh(optimizer))
    return model, optimizer


def run_by_hand(name, options, *, dtype=torch.float32, channels_last=False, steps=STEPS):
    model = make(dtype=dtype, channels_last=channels_last)
    oracle = oracle_for("rigl", model, **SETTINGS)
    by_hand = HandMasked(model, build(name, model.parameters(), **options), oracle)
    for _ in range(steps):
        by_hand.step()
    return model, by_hand


def variant_id(variant):
    name, options = variant
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


@pytest.mark.parametrize("variant", elementwise_variants(), ids=variant_id)
def test_live_masked_and_by_hand_agree(variant):
    assert_agreement(*variant)


@pytest.mark.parametrize("variant", elementwise_variants(), ids=variant_id)
def test_live_masked_and_by_hand_agree_in_bf16_channels_last(variant):
    assert_agreement(*variant, dtype=torch.bfloat16, channels_last=True, steps=SHORT)


def assert_agreement(name, options, **form):
    """Equal to the last bit, unless torch's last bit depends on the position in a tensor.

    In bf16 it may depend on the position under every optimizer.
    """
    by_hand, _ = run_by_hand(name, options, **form)
    masked, masked_optimizer = sparse_run(name, options, "masked", **form)
    assert_same_weights(masked, by_hand)
    if "dtype" in form or not place_does_not_matter(name, options, torch.float32):
        assert_every_single_step_agrees(name, options, **form)
        return
    live, live_optimizer = sparse_run(name, options, "live", **form)
    assert_same_weights(live, masked)
    for left, right in zip(live_optimizer.layers, masked_optimizer.layers, strict=True):
        assert torch.equal(left.mask, right.mask), left.name
        assert_same_state(
            per_weight_state(live_optimizer, left.weight, left.mask),
            per_weight_state(masked_optimizer, right.weight, right.mask),
        )


def assert_every_single_step_agrees(
    name, options, *, dtype=torch.float32, channels_last=False, steps=STEPS
):
    """From equal weights, gradients and state every step is within two ulps of the plain one."""
    model = make(dtype=dtype, channels_last=channels_last)
    inner = build(name, model.parameters(), **options)
    optimizer = SparseOptimizer(inner, model, method="rigl", state="live", **SETTINGS)
    for t in range(1, steps + 1):
        updating = optimizer.is_update_step
        backward(model, t)
        twin = PlainTwin(name, options, optimizer)
        optimizer.step()
        if not updating:
            twin.step()
            twin.assert_close()
        assert_dropped_are_fresh(optimizer)


def test_most_arithmetic_does_not_depend_on_the_place():
    """Guards the test above: nearly all cases are compared to the last bit."""
    exact = [name for name in ELEMENTWISE if place_does_not_matter(name, {}, torch.float32)]
    assert exact == list(ELEMENTWISE)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_learning_rate_that_is_a_tensor(name, state):
    by_hand, _ = run_by_hand(name, {"lr": torch.tensor(0.01)})
    model, _ = sparse_run(name, {"lr": torch.tensor(0.01)}, state)
    assert_same_weights(model, by_hand)


EVERY_OPTIMIZER = [
    pytest.param(name, implementation, id="-".join([name, *implementation]))
    for name in torch_optimizers()
    for implementation in implementations(name)
]


@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
@pytest.mark.parametrize(("name", "implementation"), EVERY_OPTIMIZER)
def test_dropped_weights_are_not_resurrected(name, implementation, method):
    model = model_for(name)
    inner = build(name, model.parameters(), **implementation)
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    start = {layer.name: logical(layer.weight) for layer in optimizer.layers}
    train(model, optimizer, STEPS, after=lambda _: assert_dropped_are_fresh(optimizer))
    live = sum(int(mask.sum()) for mask in optimizer.masks.values())
    assert live == sum(layer.live for layer in optimizer.layers)
    assert live == sum(layer.target for layer in optimizer.layers)
    for layer in optimizer.layers:
        assert not np.array_equal(logical(layer.weight), start[layer.name]), "nothing was learned"


@pytest.mark.parametrize("name", [n for n in torch_optimizers() if n != "LBFGS"])
def test_dropped_weights_are_not_resurrected_in_bf16(name):
    model = model_for(name, dtype=torch.bfloat16)
    optimizer = wrap(model, name, **SETTINGS)
    train(model, optimizer, STEPS, after=lambda _: assert_dropped_are_fresh(optimizer))
    for layer in optimizer.layers:
        assert layer.weight.dtype == torch.bfloat16
        assert layer.live == layer.target


OTHER_VARIANTS = [
    (name, options)
    for name in torch_optimizers()
    if name not in ELEMENTWISE
    for options in variants(name)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", OTHER_VARIANTS, ids=variant_id)
def test_optimizers_that_are_not_elementwise_equal_masking_by_hand(variant, dtype):
    """New optimizers of torch's next release are included until they are known as element-wise."""
    name, options = variant
    model, own_model = model_for(name, dtype=dtype), model_for(name, dtype=dtype)
    names = tuple(n for n, p in model.named_parameters() if p.ndim > 1)
    oracle = oracle_for("rigl", own_model, names=names, **SETTINGS)
    kind = HandMaskedByClosure if name in NEEDS_CLOSURE else HandMasked
    by_hand = kind(own_model, build(name, own_model.parameters(), **options), oracle)
    inner = build(name, model.parameters(), **options)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_dropped_are_fresh(optimizer)
    assert_same_weights(model, own_model)


def test_adafactors_factored_state_is_left_alone():
    """An update moves masks, and the row and column statistics stay as torch left them."""
    if "Adafactor" not in torch_optimizers():
        pytest.skip("this torch has no Adafactor")
    model = make()
    inner = build("Adafactor", model.parameters())
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 4)
    before = {
        (layer.name, key): value.clone()
        for layer in optimizer.layers
        for key, value in optimizer.state[layer.weight].items()
        if key in {"row_var", "col_var"}
    }
    assert len(before) >= 2
    assert optimizer.is_update_step
    train(model, optimizer, 1, start=4)
    for (name, key), value in before.items():
        parameter = dict(model.named_parameters())[name]
        assert torch.equal(optimizer.state[parameter][key], value), (name, key)


def test_shape_dependent_optimizers_refuse_live_state():
    for name in ("LBFGS", "Adafactor", "Muon"):
        if name not in torch_optimizers():
            continue
        model = model_for(name)
        with pytest.raises((ValueError, TypeError), match=name):
            wrap(model, name, state="live", **SETTINGS)


def test_subclass_is_not_taken_for_an_elementwise_optimizer():
    """Only exact types are known to be element-wise; a subclass takes the masked path."""

    class Centered(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.sub_(p.grad.mean())
            return super().step(closure)

    model, own_model = make(), make()
    optimizer = SparseOptimizer(Centered(model.parameters(), lr=0.05), model, **SETTINGS)
    by_hand = HandMasked(
        own_model,
        Centered(own_model.parameters(), lr=0.05),
        oracle_for("rigl", own_model, **SETTINGS),
    )
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
    assert_same_weights(model, own_model)
    assert_dropped_are_fresh(optimizer)


def test_live_state_may_be_forced_for_an_elementwise_optimizer_of_ones_own():
    class Own(torch.optim.SGD):
        pass

    model, other = make(), make()
    for net, state in ((model, "live"), (other, "masked")):
        inner = Own(net.parameters(), lr=0.05, momentum=0.9)
        optimizer = SparseOptimizer(inner, net, state=state, **SETTINGS)
        train(net, optimizer, STEPS)
        layer = optimizer.layers[0]
        buffer = optimizer.state[layer.weight]["momentum_buffer"]
        assert buffer.shape == ((layer.live,) if state == "live" else layer.weight.shape)
    assert_same_weights(model, other)
