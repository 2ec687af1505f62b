"""RigL on layers small enough to follow by eye."""

import pytest
import torch
from torch import nn

from sparseopt import RigL, SparseOptimizer
from tests.support.looking import per_weight_state


def tiny(weights, gradients, mask, *, alpha=0.5, state="auto", **settings):
    """One update of a one-layer model whose weights, gradient and mask are given."""
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))
    live = torch.tensor([mask], dtype=torch.bool)
    inner = torch.optim.Adam(model.parameters(), lr=0.5)
    optimizer = SparseOptimizer(
        inner,
        model,
        mask={"0.weight": live},
        delta_t=2,
        alpha=alpha,
        decay="constant",
        t_end=100,
        state=state,
        **settings,
    )
    inner.param_groups[0]["lr"] = 0.0
    model[0].weight.grad = torch.ones(1, len(weights))
    optimizer.step()
    model[0].weight.grad = torch.tensor([gradients])
    assert optimizer.is_update_step
    optimizer.step()
    return model[0].weight, optimizer


WEIGHTS = [5.0, 0.1, 3.0, 0.2, 0.0, 0.0, 0.0, 0.0]
MASK = [1, 1, 1, 1, 0, 0, 0, 0]


def test_smallest_weights_go_and_the_largest_gradients_come():
    weight, optimizer = tiny(WEIGHTS, [0, 0, 0, 0, 1.0, -3.0, 2.0, 0.5], MASK)
    assert optimizer.masks["0.weight"].tolist() == [[1, 0, 1, 0, 0, 1, 1, 0]]
    assert weight.tolist() == [[5.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    record = optimizer.history[-1]
    assert (record.step, record.fraction, record.dropped, record.grown) == (2, 0.5, 2, 2)
    assert record.new == 0.5


def test_live_weight_is_no_candidate_even_if_all_gradients_are_zero():
    """A live weight is excluded as live, not by a score of 0, or it could be chosen again."""
    weight, optimizer = tiny(WEIGHTS, [9.0, 0, 9.0, 0, 0, 0, 0, 0], MASK)
    assert optimizer.masks["0.weight"].sum() == 4
    assert weight[0, 0] == 5.0
    assert weight[0, 2] == 3.0
    # All candidates tie at 0, so the lowest two indices grow: 1 and 3 were just dropped.
    assert optimizer.masks["0.weight"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_weight_dropped_now_may_come_straight_back_with_value_and_state(state):
    weight, optimizer = tiny(WEIGHTS, [0, 5.0, 0, 0, 1.0, 0, 0, 0], MASK, state=state)
    assert optimizer.masks["0.weight"].tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]]
    assert weight.tolist()[0] == pytest.approx([5.0, 0.1, 3.0, 0, 0, 0, 0, 0])
    moments = per_weight_state(optimizer, weight, optimizer.masks["0.weight"])
    assert moments["exp_avg"].tolist() == pytest.approx([0.1, 0.1, 0.1, 0, 0, 0, 0, 0])
    assert optimizer.history[-1].new == 0.25


def test_regrow_zero_brings_a_dropped_weight_back_as_a_new_one(state):
    weight, optimizer = tiny(
        WEIGHTS, [0, 5.0, 0, 0, 1.0, 0, 0, 0], MASK, state=state, regrow="zero"
    )
    assert optimizer.masks["0.weight"].tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]]
    assert weight.tolist() == [[5.0, 0.0, 3.0, 0, 0, 0, 0, 0]]
    moments = per_weight_state(optimizer, weight, optimizer.masks["0.weight"])
    assert moments["exp_avg"].tolist() == pytest.approx([0.1, 0, 0.1, 0, 0, 0, 0, 0])


def test_regrow_never_keeps_a_dropped_weight_out():
    _, optimizer = tiny(WEIGHTS, [0, 5.0, 0, 0, 1.0, 0, 0.5, 0], MASK, regrow="never")
    assert optimizer.masks["0.weight"].tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]


def test_regrow_never_drops_no_more_than_others_can_grow():
    weights, mask = [5.0, 0.1, 3.0, 0.2, 0.3, 0.4, 2.0, 0.0], [1] * 7 + [0]
    _, optimizer = tiny(weights, [1.0] * 8, mask, regrow="never")
    assert optimizer.masks["0.weight"].tolist() == [[1, 0, 1, 1, 1, 1, 1, 1]]
    assert (optimizer.history[-1].dropped, optimizer.history[-1].grown) == (1, 1)


def test_regrow_may_be_given_to_the_method():
    by_method = tiny(WEIGHTS, [0, 5.0, 0, 0, 1.0, 0, 0.5, 0], MASK, method=RigL(regrow="never"))[1]
    assert by_method.masks["0.weight"].tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]


def test_ties_of_weights_and_of_gradients_fall_to_the_lowest_index():
    weights, mask = [0.5, -0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0], MASK
    _, optimizer = tiny(weights, [0, 0, 0, 0, 1.0, -1.0, 1.0, 1.0], mask)
    assert optimizer.masks["0.weight"].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]


def test_share_below_one_weight_moves_nothing_but_is_an_update():
    _, optimizer = tiny(WEIGHTS, [0, 0, 0, 0, 1.0, 2.0, 3.0, 4.0], MASK, alpha=0.2)
    assert optimizer.masks["0.weight"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert (optimizer.history[-1].dropped, optimizer.history[-1].grown) == (0, 0)
    assert optimizer.history[-1].new == 0


def test_layer_of_one_live_weight_keeps_one():
    _, optimizer = tiny([2.0, 0, 0], [0, 1.0, 5.0], [1, 0, 0], alpha=1.0)
    assert optimizer.masks["0.weight"].tolist() == [[0, 0, 1]]


def test_method_is_a_frozen_dataclass():
    method = RigL()
    with pytest.raises(AttributeError):
        method.regrow = "zero"
    assert RigL() == RigL()
