"""What methods were called by in 0.1.0 works, with a warning that names the new spelling."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from sparseopt import (
    NM,
    Accumulated,
    Compose,
    DropGrow,
    RigL,
    RigLSG,
    RigLSM,
    Smoothed,
    SRigL,
    UpdateSchedule,
)
from tests.support.wrapping import wrap

ACCUMULATED = Accumulated(3)


@pytest.mark.parametrize("kind", [RigL, NM, SRigL, RigLSG, RigLSM])
def test_memory_of_gradients_is_taken_and_read_as_grow(kind):
    with pytest.warns(DeprecationWarning, match=r"grow= is an old spelling.* write gradient="):
        method = kind(grow=ACCUMULATED)
    assert method == kind(gradient=ACCUMULATED)
    with pytest.warns(DeprecationWarning, match=r"\.grow is an old spelling") as caught:
        assert method.grow is ACCUMULATED
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="grow= is the old name of gradient="):
        kind(grow=ACCUMULATED, gradient=None)


def test_memory_of_a_composed_method_is_taken_as_remember():
    with pytest.warns(DeprecationWarning, match="remember="):
        method = Compose(grow="momentum", remember=ACCUMULATED)
    assert method == Compose(grow="momentum", gradient=ACCUMULATED)
    # Its grow= is a score, as it was.
    assert method.grow == "momentum"


def test_coefficient_of_a_moving_average_is_taken_and_read_as_decay():
    with pytest.warns(DeprecationWarning, match=r"decay= is an old spelling.* write beta="):
        smoothed = Smoothed(decay=0.5)
    assert smoothed == Smoothed(0.5) == replace(Smoothed(), beta=0.5)
    with pytest.warns(DeprecationWarning, match=r"\.decay"):
        assert smoothed.decay == 0.5


def test_method_that_settles_reaches_its_target():
    with pytest.warns(DeprecationWarning, match="settles .*write reaches_target_at_t_end"):

        @dataclass(frozen=True)
        class Own(DropGrow):
            name = "own"
            settles = True

            def grow_scores(self, layer, update):
                return update.random_scores(layer)

    assert Own().reaches_target_at_t_end
    assert not RigL().reaches_target_at_t_end


def test_accumulated_gradient_is_read_as_remembered():
    seen = []

    @dataclass(frozen=True)
    class Own(RigL):
        def grow_scores(self, layer, update):
            with pytest.warns(
                DeprecationWarning, match=r"\.remembered is .*\.accumulated_gradient"
            ):
                old = update.remembered(layer)
            seen.append(torch.equal(old, update.accumulated_gradient(layer)))
            return old.abs()

    model = nn.Linear(8, 8)
    optimizer = wrap(model, method=Own(gradient=ACCUMULATED), delta_t=2)
    for _ in range(2):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    assert seen == [True]


def test_steps_that_a_method_remembers_are_those_that_it_accumulates():
    with pytest.warns(DeprecationWarning, match=r"remembers\(\) in a .* write accumulates\(\)"):

        @dataclass(frozen=True)
        class Own(RigL):
            def remembers(self, step, schedule, total_steps):
                return step % 2 == 0

    schedule = UpdateSchedule(delta_t=10, alpha=0.3, t_end=100, decay="cosine")
    method = Own(gradient=Smoothed())
    assert [method.reads_dense_gradient(step, schedule, 200) for step in (1, 2, 3)] == [
        False,
        True,
        False,
    ]
    with pytest.warns(DeprecationWarning, match=r"\.remembers is .*\.accumulates"):
        assert RigL(gradient=Smoothed()).remembers(1, schedule, 200)


def test_super_remembers_is_what_the_next_class_accumulates():
    class Even:
        def remembers(self, step, schedule, total_steps):
            return [*super().remembers(step, schedule, total_steps), "even"]

    class Third:
        def accumulates(self, step, schedule, total_steps):
            return [*super().remembers(step, schedule, total_steps), "third"]

    class Base(RigL):
        def accumulates(self, step, schedule, total_steps):
            return [super().accumulates(step, schedule, total_steps)]

    coming = (1, UpdateSchedule(delta_t=10, alpha=0.3, t_end=100, decay="cosine"), 200)
    with pytest.warns(DeprecationWarning, match=r"remembers\(\) in a .* write accumulates\(\)"):

        class Own(Even, Third, Base):
            def remembers(self, step, schedule, total_steps):
                return [*super().remembers(step, schedule, total_steps), "own"]

    with pytest.warns(DeprecationWarning, match=r"remembers\(\) in a .* write accumulates\(\)"):

        class Explicit(Own):
            def remembers(self, step, schedule, total_steps):
                return [*Own.remembers(self, step, schedule, total_steps), "explicit"]

    for kind, own in ((Own, []), (Explicit, ["explicit"])):
        method = kind(gradient=Smoothed())
        expected = [True, "third", "even", "own", *own]
        with pytest.warns(DeprecationWarning, match=r"\.remembers is .*\.accumulates"):
            assert method.accumulates(*coming) == expected
        with pytest.warns(DeprecationWarning, match=r"\.remembers is .*\.accumulates"):
            assert method.remembers(*coming) == expected


def test_remembers_of_a_class_before_the_method_is_used():
    class Never:
        def remembers(self, step, schedule, total_steps):
            return False

    with pytest.warns(DeprecationWarning, match=r"remembers\(\) in a .* write accumulates\(\)"):

        class Own(Never, RigL):
            pass

    schedule = UpdateSchedule(delta_t=10, alpha=0.3, t_end=100, decay="cosine")
    assert not Own(gradient=Smoothed()).accumulates(1, schedule, 200)
    with pytest.warns(DeprecationWarning, match=r"\.remembers is .*\.accumulates"):
        assert not Own(gradient=Smoothed()).remembers(1, schedule, 200)


def test_method_that_prepares_the_forward_pass_need_not_say_so():
    seen = []

    def declare(**flags):
        def prepare_forward(self, model, update):
            seen.append(update.step)

        functions = {
            "name": "own",
            "prepare_forward": prepare_forward,
            "grow_scores": lambda self, layer, update: update.random_scores(layer),
        }
        return dataclass(frozen=True)(type("Own", (DropGrow,), {**functions, **flags}))

    own = declare()
    with pytest.warns(DeprecationWarning, match="prepares_forward .*write prepare_forward"):
        old = declare(prepares_forward=True)
    for kind in (own, old):
        seen.clear()
        assert kind().prepares_forward
        assert kind().dense_passes == 3
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        optimizer = wrap(model, method=kind(), delta_t=2)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        assert seen == [2, 4]
        assert optimizer.history[0].grown
    assert not RigL().prepares_forward
    assert RigL().dense_passes == 1
