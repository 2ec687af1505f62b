"""A checkpoint that only one rank has loaded is an error, for masks would differ from then on."""

import pytest

from tests.distributed.load_on_one_rank import STOP, first_step_after_loading
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo


@pytest.mark.parametrize("with_closure", [False, True])
def test_first_step_raises_before_anything_moves_if_one_rank_has_loaded(with_closure):
    """The first rank to make the step goes on; the other one raises the error."""
    answers = two_ranks().run(first_step_after_loading, (0,), with_closure=with_closure)
    (wrong,) = (answer for answer in answers if answer["error"])
    assert "the same gradients, but other masks" in wrong["error"]
    assert "load_state_dict() with the same state dict on every rank" in wrong["error"]
    assert wrong["moved"] == []
    assert wrong["steps"] in {0, STOP}


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("ranks", [(), (0, 1)])
def test_ranks_that_have_all_loaded_or_not_are_left_alone(ranks, with_closure):
    answers = two_ranks().run(first_step_after_loading, ranks, with_closure=with_closure)
    steps = STOP + 1 if ranks else 1
    assert answers == [{"error": None, "moved": [], "steps": steps}] * 2


def test_ranks_that_train_apart_may_load_for_themselves():
    answers = two_ranks().run(first_step_after_loading, (0,), together=False)
    assert [answer["error"] for answer in answers] == [None, None]
    assert [answer["steps"] for answer in answers] == [STOP + 1, 1]
