"""What 0.1.0 wrote for a smaller model works, with a warning that names the new spelling."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparseopt import (
    CompactedTraining,
    Compaction,
    RigLStruct,
    SparseOptimizer,
    compact,
    find_channel_groups,
)

NEURONS = torch.tensor([True, False, True, True, False])
X, SCALE = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0)
#: The same two inputs, as further arguments of the call.
OLD_INPUTS = [((X, SCALE), {}), ((X,), {"scale": SCALE}), ((), {"x": X, "scale": SCALE})]
IDS = ["positional", "both", "keyword"]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, scale):
        return self.last(torch.relu(self.first(x * scale)))


def without_two_neurons():
    """A model, and the optimizer that dropped two of its five neurons."""
    model = Scaled()
    masks = {"first": NEURONS[:, None].expand(5, 6)}
    inner = torch.optim.SGD(model.parameters())
    return model, SparseOptimizer(inner, model, method="static", mask=masks, init={"last": 1.0})


def moving():
    """A model, and an optimizer that moves its neurons."""
    model = Scaled()
    groups = find_channel_groups(model, (X, SCALE))
    method = RigLStruct(groups=groups, kinds={"neuron": 0.6})
    inner = torch.optim.SGD(model.parameters())
    return model, SparseOptimizer(inner, model, method=method, total_steps=100, delta_t=10)


def assert_is_the_smaller(smaller, model):
    """Five neurons without the two, and the dense layers' own numbers."""
    assert type(smaller) is Scaled
    torch.testing.assert_close(smaller.first.weight, model.first.weight[NEURONS])
    torch.testing.assert_close(smaller.last.weight, model.last.weight[:, NEURONS])
    torch.testing.assert_close(smaller(X, SCALE), model(X, SCALE))


@pytest.mark.parametrize(("inputs", "keywords"), OLD_INPUTS, ids=IDS)
def test_compact_with_old_inputs_returns_the_model_and_warns_at_the_caller(inputs, keywords):
    model, optimizer = without_two_neurons()
    with pytest.warns(
        DeprecationWarning, match=r"write compact\(.*example_inputs=.*\)\.model"
    ) as w:
        smaller = compact(model, optimizer, *inputs, **keywords)
    assert [warning.filename for warning in w] == [__file__]
    assert_is_the_smaller(smaller, model)


@pytest.mark.parametrize(("inputs", "keywords"), OLD_INPUTS, ids=IDS)
def test_compaction_has_what_compact_returns_and_warns_at_the_caller(inputs, keywords):
    model, optimizer = without_two_neurons()
    with pytest.warns(DeprecationWarning, match=r"Compaction\(.*write compact\(") as w:
        compaction = Compaction(model, optimizer, *inputs, **keywords)
    assert [warning.filename for warning in w] == [__file__]
    assert_is_the_smaller(compaction.model, model)
    compacted = compact(model, optimizer, example_inputs=(X, SCALE))
    assert compaction.report == compacted.report
    assert compaction.kept["first.weight"][0].tolist() == [0, 2, 3]
    assert compaction.masks.keys() == compacted.masks.keys()
    assert compaction.masks["first.weight"].shape == (3, 6)


@pytest.mark.parametrize(("inputs", "keywords"), OLD_INPUTS, ids=IDS)
def test_compacted_training_with_old_inputs_is_smaller_at_once_and_warns(inputs, keywords):
    model, optimizer = moving()
    with pytest.warns(DeprecationWarning, match="write CompactedTraining.*example_inputs=") as w:
        training = CompactedTraining(model, optimizer, *inputs, **keywords)
    assert [warning.filename for warning in w] == [__file__]
    with training:
        assert model.first.out_features == 3
    assert model.first.out_features == 5


def test_compacted_training_restores_the_full_model_by_the_old_names_and_warns():
    model, optimizer = moving()
    with CompactedTraining(model, optimizer, example_inputs=(X, SCALE)) as training:
        assert model.first.out_features == 3
        with pytest.warns(DeprecationWarning, match=r"whole\(\).* write .*restore\(\)") as w:
            training.whole()
        assert model.first.out_features == 5
        with pytest.warns(DeprecationWarning, match="is_whole.* write .*is_full") as v:
            assert training.is_whole
        assert [warning.filename for warning in (*w, *v)] == [__file__] * 2


def test_masks_by_the_old_name_optimizer_work_and_warn_at_the_caller():
    model, optimizer = without_two_neurons()
    with pytest.warns(DeprecationWarning, match="optimizer= is an old.* write masks=") as w:
        compacted = compact(model, optimizer=optimizer, example_inputs=(X, SCALE))
    with (
        pytest.warns(DeprecationWarning, match=r"Compaction\("),
        pytest.warns(DeprecationWarning, match="optimizer= is an old.* write masks="),
    ):
        compaction = Compaction(model, optimizer=optimizer, x=X, scale=SCALE)
    assert [warning.filename for warning in w] == [__file__]
    for smaller in (compacted.model, compaction.model):
        assert_is_the_smaller(smaller, model)


@pytest.mark.parametrize(
    ("call", "pair"), [(compact, without_two_neurons), (CompactedTraining, moving)]
)
def test_inputs_in_both_spellings_are_refused(call, pair):
    model, optimizer = pair()
    with pytest.raises(TypeError, match=r"given twice.* positional inputs, scale=: write "):
        call(model, optimizer, X, scale=SCALE, example_inputs=(X, SCALE))


def test_result_of_compact_can_be_used_as_the_model_that_0_1_0_returned():
    """Without inputs nothing in the call says which of both is meant."""
    model, optimizer = without_two_neurons()
    compacted = compact(model, optimizer, example_inputs=(X, SCALE))
    with pytest.warns(DeprecationWarning, match=r"\(inputs\).* write .*\.model\(inputs\)") as call:
        found = compacted(X, SCALE)
    with pytest.warns(DeprecationWarning, match=r"write compact\(\.\.\.\)\.model\.first") as read:
        first = compacted.first
    with pytest.warns(DeprecationWarning, match="state_dict"):
        state = compacted.state_dict()
    assert {warning.filename for warning in [*call, *read]} == {__file__}
    torch.testing.assert_close(found, model(X, SCALE))
    assert first is compacted.model.first
    assert state.keys() == model.state_dict().keys()


def test_result_of_compact_is_indexed_as_the_model_that_0_1_0_returned():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    compacted = compact(model, "nonzero", example_inputs=X)
    with pytest.warns(DeprecationWarning, match=r"write compact\(\.\.\.\)\.model\[0\]"):
        assert compacted[0] is compacted.model[0]


def test_result_of_compact_refuses_other_names_and_is_copied_without_a_warning():
    compacted = compact(*without_two_neurons(), example_inputs=(X, SCALE))
    with pytest.raises(AttributeError, match="'Compacted' object has no attribute 'frist'"):
        _ = compacted.frist
    for copied in (copy.deepcopy(compacted), pickle.loads(pickle.dumps(compacted))):
        assert copied.report == compacted.report
        torch.testing.assert_close(copied.model(X, SCALE), compacted.model(X, SCALE))
