"""MEST: a hard bound, or a soft bound that grown weights exceed."""

import pytest
import torch

from sparseopt import MEST, SparseOptimizer
from tests import oracle
from tests.support.agreement import run_against_oracle, states
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, logical, masks_of
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for
from tests.support.training import train, train_step
from tests.support.wrapping import settings_with, wrap

STEPS = 62
SETTINGS = settings_with(total_steps=STEPS, delta_t=4, init="erk")


def wrapped(name="SGD", state="auto", *, lam=0.0, grow="random", bound="soft"):
    model = make()
    method = MEST(gradient_weight=lam, grow=grow, bound=bound)
    optimizer = wrap(model, name, method=method, state=state, **SETTINGS)
    set_oracle = oracle_for("set", model, **SETTINGS)
    reference = oracle.MESTOracle(
        set_oracle.masks,
        lam=lam,
        grow=grow,
        bound=bound,
        generator=set_oracle.generator,
        delta_t=4,
        t_end=oracle.default_t_end(STEPS),
        alpha=0.3,
    )
    return model, optimizer, reference


@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("grow", ["random", "gradient"])
@pytest.mark.parametrize("bound", ["soft", "hard"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, bound, grow, lam, state):
    model, optimizer, reference = wrapped(name, state, lam=lam, grow=grow, bound=bound)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 11 + (bound == "soft")
    assert all(layer.live == layer.target for layer in optimizer.layers)


def test_newcomers_exceed_the_target_until_the_end():
    model, optimizer, _ = wrapped()
    targets = [layer.target for layer in optimizer.layers]
    excess = []

    def check(t):
        assert_dropped_are_fresh(optimizer)
        assert [layer.target for layer in optimizer.layers] == targets
        excess.append(sum(layer.live for layer in optimizer.layers) - sum(targets))

    train(model, optimizer, STEPS, after=check)
    assert excess[:3] == [0, 0, 0]
    assert excess[3] == max(excess) > 0
    assert excess[3:] == sorted(excess[3:], reverse=True)
    assert excess[-1] == 0
    assert optimizer.history[-1].step == int(0.75 * STEPS)


def test_gradient_keeps_a_small_weight_alive():
    def mask_after(gradient_weight):
        model = torch.nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.1, 0.2, 3.0, 0.0]]))
        optimizer = SparseOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            model,
            method=MEST(gradient_weight=gradient_weight, bound="hard", regrow="never"),
            mask={"weight": torch.tensor([[True, True, True, False]])},
            delta_t=1,
            alpha=0.4,
            decay="constant",
            t_end=10,
        )
        model.weight.grad = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
        optimizer.step()
        return optimizer.masks["weight"].int().tolist()[0]

    assert mask_after(0.0) == [0, 1, 1, 1]
    assert mask_after(1.0) == [1, 0, 1, 1]


def test_dense_gradients_are_asked_for_only_to_grow_by_them():
    assert not MEST(gradient_weight=1.0).needs_dense_gradient
    assert MEST(grow="gradient").needs_dense_gradient
    model, optimizer, _ = wrapped(lam=1.0)
    for t in range(1, 4):
        train_step(model, optimizer, t)
    assert optimizer.is_update_step
    model.zero_grad()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    for name in SPARSE_NAMES:
        gradient = dict(model.named_parameters())[name].grad
        assert not gradient[~optimizer.masks[name]].any()


@pytest.mark.parametrize("bad", [{"gradient_weight": -1.0}, {"grow": "best"}, {"bound": "firm"}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MEST(**bad)


@pytest.mark.parametrize("regrow", ["keep", "zero", "never"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_update_that_only_grows_leaves_all_live_weights_and_their_state(name, regrow, state):
    model = make()
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, method=MEST(regrow=regrow), state=state, **SETTINGS)
    train(model, optimizer, 3)
    old, before = masks_of(optimizer), states(optimizer)
    weights = {layer.name: logical(layer.weight) for layer in optimizer.layers}
    train(model, optimizer, 1, start=3)
    assert (optimizer.history[-1].dropped, optimizer.history[-1].grown > 0) == (0, True)
    for layer in optimizer.layers:
        live = old[layer.name]
        assert logical(layer.mask)[live].all()
        assert (logical(layer.weight)[live] == weights[layer.name][live]).all()
        for key, values in states(optimizer)[layer.name].items():
            assert (values[live] == before[layer.name][key][live]).all()
