"""The timer: every call once a round, compared within rounds, with nothing left out or added."""

import time

import pytest
import torch

from sparseopt.speedup.timing import Timing, in_turn, seconds, time_in_turn


class Clock:
    """A clock that moves only when a call says how long it takes."""

    def __init__(self):
        self.now = 0.0

    def taking(self, *durations):
        """A call that takes each of ``durations`` in turn, the last one from then on."""
        left = list(durations)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    return made


def test_times_are_those_of_each_call_in_each_round_without_the_warm_up(clock):
    calls = {"slow": clock.taking(50.0, 4.0, 6.0, 5.0), "fast": clock.taking(9.0, 2.0)}
    times = time_in_turn(calls, rounds=3, device="cpu")
    assert times == {"slow": Timing((4.0, 6.0, 5.0)), "fast": Timing((2.0, 2.0, 2.0))}
    assert times["slow"].over(times["fast"]).median == 2.5


def test_short_calls_are_repeated_within_a_measurement_and_long_ones_are_not(clock):
    called = {"short": 0, "long": 0}

    def counted(name, call):
        def run():
            called[name] += 1
            call()

        return run

    calls = {
        "short": counted("short", clock.taking(0.9, 0.25)),
        "long": counted("long", clock.taking(3.0)),
    }
    times = time_in_turn(calls, rounds=2, device="cpu", warmup=2, shortest=1.0)
    assert times == {"short": Timing((0.25, 0.25)), "long": Timing((3.0, 3.0))}
    assert called == {"short": 2 + 2 * 4, "long": 2 + 2}


def test_hopeless_calls_are_made_in_the_first_round_only(clock):
    calls = {
        "fast": clock.taking(0.125, 0.25, 0.25, 0.75),
        "slow": clock.taking(0.5),
        "hopeless": clock.taking(9.0, 1.0, 4.0),
    }
    times = time_in_turn(calls, rounds=3, device="cpu", hopeless=4.0)
    assert times == {
        "fast": Timing((0.25, 0.25, 0.75)),
        "slow": Timing((0.5, 0.5, 0.5)),
        "hopeless": Timing((1.0, 1.0, 1.0)),
    }
    short = {"fast": clock.taking(0.0), "slow": clock.taking(0.125, 0.125, 0.0625)}
    times = time_in_turn(short, rounds=2, device="cpu", hopeless=4.0)
    assert times["slow"] == Timing((0.125, 0.0625))


def test_every_measure_is_called_once_a_round_and_the_order_changes():
    called = []

    def named(name):
        return lambda: called.append(name) or name

    measured = in_turn({name: named(name) for name in "abcd"}, rounds=10)
    rounds = [called[index : index + 4] for index in range(0, 40, 4)]
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(map(tuple, rounds))) > 5
    assert measured == [{name: name for name in "abcd"}] * 10
    assert [list(one) for one in measured] == [list("abcd")] * 10


def test_order_depends_on_the_seed_alone():
    def orders(seed):
        called = []
        in_turn(
            {name: lambda name=name: called.append(name) for name in "abcd"}, rounds=5, seed=seed
        )
        return called

    assert orders(3) == orders(3)
    assert orders(3) != orders(4)


def test_median_and_quartiles_are_those_of_numbers_known_by_hand():
    summary = Timing((10.0, 1.0, 2.0, 3.0, 4.0))
    assert (summary.q1, summary.median, summary.q3) == (2.0, 3.0, 4.0)


def test_accelerator_is_waited_for_before_the_clock_is_read(clock, monkeypatch):
    """The call only queues work, which runs until the next synchronisation."""
    device = torch.device("cuda", 0)
    queue = [7.0]
    waited = []

    def synchronise(place):
        waited.append(place)
        clock.now += sum(queue)
        queue.clear()

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronise)
    assert seconds(lambda: queue.append(2.0), device=device, repeats=3) == 2.0
    assert waited == [device, device]


def test_time_of_a_thread_leaves_out_waiting():
    waiting = seconds(lambda: time.sleep(0.02), clock="thread", device="cpu")
    assert waiting < seconds(lambda: time.sleep(0.02), clock="wall", device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be 1 or more"),
        ({"rounds": 1, "warmup": -1}, "warmup=-1 must be 0 or more"),
        ({"rounds": 1, "shortest": -0.5}, "shortest=-0.5 must be 0 or more"),
        ({"rounds": 1, "shortest": 1e-3, "warmup": 0}, "needs a warm-up call"),
        ({"rounds": 1, "hopeless": 1.0}, "hopeless=1.0 must be above 1"),
        ({"rounds": 1, "clock": "cpu"}, "clock='cpu' is unknown; choose from 'wall', 'thread'"),
        ({"rounds": 1, "clock": "thread", "device": "cuda"}, "device='cuda'.*clock='wall'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        time_in_turn({"call": lambda: None}, **{"device": "cpu", **settings})


def test_measurement_of_no_calls_is_refused():
    with pytest.raises(ValueError, match="repeats=0 must be 1 or more"):
        seconds(lambda: None, device="cpu", repeats=0)


def test_ratios_of_other_rounds_and_summaries_of_none_are_refused():
    with pytest.raises(ValueError, match="other has 1 rounds and this timing 2"):
        Timing((1.0, 2.0)).over(Timing((1.0,)))
    with pytest.raises(ValueError, match="no round"):
        Timing(())
