"""Arguments that all methods have, and the order in which methods take theirs."""

import pickle
from dataclasses import dataclass, replace

import pytest

from sparseopt import MEST, NM, SET, DropGrow, GraNet, RigL, Smoothed, SRigL


@dataclass(frozen=True)
class Own(DropGrow):
    name = "own"
    strength: float = 1.0

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


@pytest.mark.parametrize(
    ("method", "values", "named"),
    [
        (NM, (1, 8), {"n": 1, "m": 8}),
        (GraNet, (0.8,), {"initial": 0.8}),
        (SRigL, (0.5,), {"gamma": 0.5}),
        (MEST, (0.5,), {"gradient_weight": 0.5}),
        (RigL, (Smoothed(0.9),), {"gradient": Smoothed(0.9)}),
        (Own, (0.5,), {"strength": 0.5}),
    ],
)
def test_main_argument_of_a_method_can_be_positional(method, values, named):
    by_position = method(*values)
    assert by_position == method(**named)
    assert replace(by_position, regrow="zero") == method(**named, regrow="zero")
    assert pickle.loads(pickle.dumps(by_position)) == by_position


def test_regrow_is_by_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        SET("zero")


def test_method_shows_all_it_was_given():
    assert repr(NM(1, 8)) == "NM(regrow='keep', gradient=None, n=1, m=8)"
    assert repr(Own(0.5, regrow="never")) == "Own(regrow='never', strength=0.5)"


def test_unknown_choice_is_refused_with_the_nearest_or_all_choices():
    with pytest.raises(ValueError, match=r"^regrow=2 is not known\. Known: keep, never, zero\.$"):
        SET(regrow=2)
    with pytest.raises(ValueError, match=r"is not known; did you mean 'zero'\? Known: keep, "):
        SET(regrow="zeros")
