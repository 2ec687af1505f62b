"""Every learning-rate scheduler of torch, made before or after wrapping."""

import copy
import inspect
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked
from tests.support.catalogue import build
from tests.support.looking import assert_same_weights
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for
from tests.support.training import backward, train_step
from tests.support.wrapping import settings_with, wrap

STEPS = 16
SETTINGS = settings_with(method="static", total_steps=STEPS, delta_t=4)

MAKERS = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.LinearLR(o)]
    ),
    "ConstantLR": lr_scheduler.ConstantLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lr_scheduler.LinearLR,
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 7]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
}


def test_list_is_torchs_own():
    theirs = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value)
        and issubclass(value, lr_scheduler.LRScheduler)
        and not name.startswith("_")
        and value is not lr_scheduler.LRScheduler
    }
    assert theirs == set(MAKERS)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(scheduler):
    args = (1.0,) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else ()
    scheduler.step(*args)


def plain_run(name):
    """Learning rates and weights of a plain optimizer with a dense model."""
    model = make()
    optimizer = build("SGD", model.parameters())
    scheduler, seen = MAKERS[name](optimizer), []
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        advance(scheduler)
        seen.append(rates_of(optimizer))
    return model, seen


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_learning_rates_arrive(name, when):
    """At density 1 the run equals the plain run to the last bit, so every rate was set in time."""
    plain_model, expected = plain_run(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*epoch parameter in `scheduler.step")
        model = make()
        inner = build("SGD", model.parameters())
        if when == "before":
            scheduler = MAKERS[name](inner)
        optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "density": 1.0})
        if when == "after":
            scheduler = MAKERS[name](optimizer)
        seen = []
        for t in range(1, STEPS + 1):
            train_step(model, optimizer, t)
            advance(scheduler)
            assert rates_of(optimizer) == rates_of(optimizer.inner)
            seen.append(rates_of(optimizer))
    assert seen == expected
    assert_same_weights(model, plain_model)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_learning_rates_arrive_where_masks_move(name, state):
    """A dense run with masks and rates set by hand has the same weights."""
    settings = {**SETTINGS, "method": "rigl"}
    model, own_model = make(), make()
    plain = build("SGD", own_model.parameters())
    by_hand = HandMasked(own_model, plain, oracle_for(model=own_model, **settings))
    optimizer = wrap(model, state=state, **settings)
    schedulers = [MAKERS[name](optimizer)]
    with warnings.catch_warnings():
        # By hand, an update does not step the optimizer, which the scheduler takes for a mistake.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedulers.append(MAKERS[name](plain))
        for t in range(1, STEPS + 1):
            train_step(model, optimizer, t)
            by_hand.step()
            for scheduler in schedulers:
                advance(scheduler)
            assert rates_of(optimizer) == rates_of(plain)
    assert len(optimizer.history) == 2
    assert_same_weights(model, own_model)


@pytest.mark.parametrize("when", ["before", "after"])
def test_scheduler_does_not_warn_if_the_first_steps_are_update_steps(when):
    """An update step does not step the inner optimizer, and the scheduler must not complain."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Masks that move at every step are warned of too.
        warnings.filterwarnings("ignore", "delta_t=1", UserWarning)
        model = make()
        inner = build("SGD", model.parameters())
        settings = {**SETTINGS, "method": "rigl", "delta_t": 1}
        if when == "before":
            scheduler = MAKERS["StepLR"](inner)
        optimizer = SparseOptimizer(inner, model, **settings)
        if when == "after":
            scheduler = MAKERS["StepLR"](optimizer)
        for t in range(1, 6):
            backward(model, t)
            optimizer.step()
            scheduler.step()
    assert len(optimizer.history) == 5


def test_scheduler_and_the_optimizer_come_back_from_a_checkpoint():
    """The rate that the scheduler sets after loading is the one that trains."""
    model = make()
    optimizer = wrap(model, **SETTINGS)
    scheduler = MAKERS["ExponentialLR"](optimizer)
    for t in range(1, 7):
        train_step(model, optimizer, t)
        scheduler.step()

    other = make()
    fresh = wrap(other, **SETTINGS)
    fresh_scheduler = MAKERS["ExponentialLR"](fresh)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_scheduler.load_state_dict(scheduler.state_dict())
    for t in range(7, 13):
        for net, one, its_scheduler in (
            (model, optimizer, scheduler),
            (other, fresh, fresh_scheduler),
        ):
            train_step(net, one, t)
            its_scheduler.step()
        assert rates_of(fresh) == rates_of(optimizer) == rates_of(fresh.inner)
    assert_same_weights(model, other)


def test_swa_averages_what_the_optimizer_trains():
    model = make()
    optimizer = wrap(model, **SETTINGS)
    average = torch.optim.swa_utils.AveragedModel(model)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
    seen = []
    for t in range(1, 9):
        train_step(model, optimizer, t)
        average.update_parameters(model)
        scheduler.step()
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.01)
    for name, p in average.module.named_parameters():
        mean = torch.stack([weights[name] for weights in seen]).mean(0)
        torch.testing.assert_close(p.detach(), mean)
        if name in optimizer.masks:
            assert not p[~optimizer.masks[name]].any()


def test_ema_of_moving_masks_is_what_the_formula_says_and_sparse_once_masked(state):
    """An average over masks is denser than each mask; `apply_masks` restores the density."""
    model, decay = make(), 0.8
    settings = {**SETTINGS, "method": "rigl", "total_steps": 40}
    optimizer = wrap(model, "AdamW", state=state, **settings)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    expected = None
    for t in range(1, 21):
        train_step(model, optimizer, t)
        average.update_parameters(model)
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        if expected is None:
            expected = now
        else:
            expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    averaged = dict(average.module.named_parameters())
    for name, p in averaged.items():
        torch.testing.assert_close(p.detach(), expected[name])
    live = sum(int(averaged[name].count_nonzero()) for name in SPARSE_NAMES)
    assert live > sum(layer.live for layer in optimizer.layers)

    optimizer.apply_masks(average)
    for name, p in averaged.items():
        mask = optimizer.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        torch.testing.assert_close(p.detach(), torch.where(mask, expected[name], 0.0))
    assert sum(int(averaged[name].count_nonzero()) for name in SPARSE_NAMES) <= sum(
        layer.live for layer in optimizer.layers
    )
