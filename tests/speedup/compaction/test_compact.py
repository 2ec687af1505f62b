"""What ``compact`` removes, what it keeps, and which models raise an error."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import CompactionError, SparseOptimizer, compact
from tests.speedup.masking import optimizer_without, optimizer_without_half, settle, static
from tests.speedup.stateful import STATES, Counting

IMAGE = (4, 3, 8, 8)


def agree(model, smaller, *inputs):
    for mode in (False, True):
        expected = copy.deepcopy(model).train(mode)(*inputs)
        found = copy.deepcopy(smaller).train(mode)(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def sizes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def why(compacted, name, dim=0):
    return {one.reason for one in compacted.report.remaining if (one.name, one.dim) == (name, dim)}


def test_dropped_neuron_goes_and_its_bias_goes_into_the_next_layer():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    optimizer = optimizer_without(model, {"0": [1, 2, 7]})
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=x).model
    agree(model, smaller, x)
    assert sizes(smaller) == {
        "0.weight": (5, 6), "0.bias": (5,), "2.weight": (5, 5), "2.bias": (5,)
    }  # fmt: skip
    constant = model[2].weight[:, [1, 2, 7]] @ model[0].bias[[1, 2, 7]].tanh()
    torch.testing.assert_close(smaller[2].bias, model[2].bias + constant)


def test_neuron_that_nothing_reads_goes():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    # The last layer reads nothing of neurons 0 to 3, and only those read inputs 4 to 7.
    masks = {
        f"{name}.weight": torch.ones(model[int(name)].weight.shape, dtype=torch.bool)
        for name in "024"
    }
    masks["4.weight"][:, :4] = False
    masks["2.weight"][4:, 4:] = False
    optimizer = static(model, masks)
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=x).model
    agree(model, smaller, x)
    assert sizes(smaller)["2.weight"] == (4, 4)
    assert sizes(smaller)["0.weight"] == (4, 6)


def test_smaller_model_says_its_sizes_and_the_larger_one_keeps_its_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    before = copy.deepcopy(model)
    smaller = compact(
        model, optimizer_without(model, {"0": [0, 3]}), example_inputs=torch.randn(IMAGE)
    ).model
    assert (smaller[0].out_channels, smaller[1].num_features, smaller[3].in_channels) == (6, 6, 6)
    assert repr(model) == repr(before)


class Net(nn.Module):
    """A padded and an unpadded reader of normalised channels."""

    def __init__(self, padding):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=padding, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(x).mean((2, 3)))


def test_shift_that_relu_makes_zero_goes_without_a_trace():
    model = Net(padding=1)
    optimizer = optimizer_without(model, {"first": [0, 5]})
    settle(model, torch.randn(IMAGE), shifts=(-0.5, -0.1))
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    agree(model, smaller, torch.randn(IMAGE))
    assert smaller.first.weight.shape[0] == 6
    assert smaller.second.bias is None


@pytest.mark.parametrize("has_shift", [True, False])
def test_instance_norm_turns_a_constant_into_its_shift(has_shift):
    """Each sample is normalised by itself, in both modes; a constant channel becomes zero."""
    model = Net(padding=1)
    model.first = nn.Conv2d(3, 8, 3)
    model.norm = nn.InstanceNorm2d(8, affine=has_shift)
    if has_shift:
        nn.init.constant_(model.norm.bias, -0.2)
    optimizer = optimizer_without(model, {"first": [0, 5]})
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    agree(model, smaller, torch.randn(2, 3, 11, 9))
    assert smaller.first.weight.shape[0] == smaller.second.weight.shape[1] == 6
    assert smaller.norm.num_features == 6


def test_instance_norm_with_running_statistics_has_to_settle():
    model = Net(padding=1)
    model.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    optimizer = optimizer_without(model, {"first": [0, 5]})
    nn.init.constant_(model.norm.bias, -0.2)
    model.norm.running_mean[0] = -1.0
    compacted = compact(model, optimizer, example_inputs=torch.randn(IMAGE))
    agree(model, compacted.model, torch.randn(IMAGE))
    assert compacted.model.first.weight.shape[0] == 7
    (reason,) = why(compacted, "first.weight")
    assert "running statistics have not settled" in reason


def test_positive_shift_goes_into_a_bias_that_the_reader_is_given():
    model = Net(padding=0)
    optimizer = optimizer_without(model, {"first": [0, 5], "second": [2]})
    settle(model, torch.randn(IMAGE), shifts=(0.1, 0.5))
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    agree(model, smaller, torch.randn(IMAGE))
    assert smaller.first.weight.shape[0] == 6
    assert smaller.second.bias.shape == (5,)


def test_positive_shift_next_to_padding_stays_and_the_reason_is_given():
    model = Net(padding=1)
    optimizer = optimizer_without(model, {"first": [0, 5]})
    settle(model, torch.randn(IMAGE), shifts=(0.2, 0.2))
    compacted = compact(model, optimizer, example_inputs=torch.randn(IMAGE))
    assert compacted.model.first.weight.shape[0] == 8
    assert why(compacted, "first.weight") == {
        "second reads it as the constant 0.2, and next to its padding no bias can stand in for that"
    }
    assert compacted.report.share_reached == 0.0


def test_same_shift_goes_where_masks_dropped_what_reads_it():
    model = Net(padding=1)
    optimizer = optimizer_without(model, {"first": [0, 5]}, {"second": [0, 5]})
    settle(model, torch.randn(IMAGE), shifts=(0.2, 0.2))
    compacted = compact(model, optimizer, example_inputs=torch.randn(IMAGE))
    agree(model, compacted.model, torch.randn(IMAGE))
    assert compacted.model.first.weight.shape[0] == 6
    assert compacted.report.share_reached == 1.0


def test_statistics_that_have_not_settled_are_a_reason_to_stay():
    model = Net(padding=0)
    optimizer = optimizer_without(model, {"first": [0]})
    nn.init.constant_(model.norm.bias, 0.5)
    model.norm.running_mean.fill_(0.2)
    compacted = compact(model, optimizer, example_inputs=torch.randn(IMAGE))
    (reason,) = why(compacted, "first.weight")
    assert "running statistics have not settled" in reason


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.block(x))


def test_channel_of_an_addition_goes_only_if_all_that_make_it_are_dropped():
    model = Residual()
    optimizer = optimizer_without(model, {"stem": [0, 1], "block": [1, 2]})
    nn.init.zeros_(model.stem.bias)
    compacted = compact(model, optimizer, example_inputs=torch.randn(4, 6))
    agree(model, compacted.model, torch.randn(4, 6))
    assert compacted.model.head.in_features == 7
    assert why(compacted, "stem.weight") == {"head reads it, and it is still made by block.weight"}
    assert why(compacted, "block.weight") == {"block reads it, and it is still made by stem.weight"}
    assert 0 < compacted.report.share_reached < 1


def test_depthwise_convolution_goes_with_the_channels_it_filters():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.ReLU6(),
        nn.Conv2d(8, 5, 1),
    )  # fmt: skip
    optimizer = optimizer_without(model, {"0": [0], "2": [1, 2]})
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    agree(model, smaller, torch.randn(IMAGE))
    assert (smaller[2].groups, smaller[2].in_channels, smaller[0].out_channels) == (5, 5, 5)


def test_grouped_convolution_loses_full_groups():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, groups=4, bias=False), nn.Conv2d(4, 5, 1)
    )
    optimizer = optimizer_without(model, {"0": [0, 1, 2]})
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    agree(model, smaller, torch.randn(IMAGE))
    assert (smaller[1].groups, smaller[1].in_channels, smaller[2].in_channels) == (3, 6, 3)


def test_layer_is_never_left_empty():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5))
    # One neuron of the second layer alone reads the first layer, and nothing reads this neuron.
    optimizer = optimizer_without(model, {"2": [1, 2, 3]}, {"4": [0]})
    compacted = compact(model, optimizer, example_inputs=torch.randn(4, 6))
    agree(model, compacted.model, torch.randn(4, 6))
    assert min(min(shape) for shape in sizes(compacted.model).values()) == 1


def test_flattened_channel_takes_all_its_columns_along():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    )
    smaller = compact(
        model, optimizer_without(model, {"0": [1, 3]}), example_inputs=torch.randn(IMAGE)
    ).model
    agree(model, smaller, torch.randn(IMAGE))
    assert smaller[4].in_features == 32


def test_input_of_the_first_training_step_is_used_if_none_is_given():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    optimizer = optimizer_without(model, {"0": [1]})
    with pytest.raises(ValueError, match="has no input yet"):
        compact(model, optimizer)
    model(torch.randn(64, 6)).sum().backward()
    optimizer.step()
    assert compact(model, optimizer).model[0].out_features == 7


def test_compacted_model_trains_as_the_masked_model():
    torch.manual_seed(0)
    model = Net(padding=1)
    optimizer = optimizer_without(model, {"first": [0, 5], "second": [1]})
    settle(model, torch.randn(IMAGE), shifts=(-0.5, -0.1))
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model
    plain = torch.optim.SGD(smaller.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = torch.randn(IMAGE)
        for one, stepper in ((model, optimizer), (smaller, plain)):
            stepper.zero_grad()
            one.train()(x).square().mean().backward()
            stepper.step()
    agree(model, smaller, torch.randn(IMAGE))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, x):
        return self.head(self.conv(x).reshape(-1, 256))


def test_forward_with_a_number_of_channels_written_in_it_is_refused():
    model = Fixed()
    optimizer = optimizer_without(model, {"conv": [0]})
    with pytest.raises(CompactionError, match="model=Fixed.*does not run.*written in it"):
        compact(model, optimizer, example_inputs=torch.randn(IMAGE))


class Scores(nn.Module):
    """Its output is what ``finish`` returns for the scores and the number of hidden neurons."""

    def __init__(self, finish):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.finish = finish

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.finish(self.last(hidden), hidden.shape[1])


def masked_scores(scores, _neurons):
    return scores.masked_fill(torch.tensor([False, True, False]), -torch.inf)


def all_sorts_of_scores(scores, _neurons):
    return scores / torch.tensor([1.0, 0.0, torch.nan])


def scores_of_no_rows(scores, _neurons):
    return scores, scores[:0]


@pytest.mark.parametrize("finish", [masked_scores, all_sorts_of_scores, scores_of_no_rows])
def test_outputs_that_are_not_finite_or_empty_are_compared_too(finish):
    model = Scores(finish)
    x = torch.randn(5, 6)
    smaller = compact(model, optimizer_without(model, {"first": [1]}), example_inputs=x).model
    assert sizes(smaller)["first.weight"] == (3, 6)
    torch.testing.assert_close(smaller(x), model(x), equal_nan=True)


def other_scores_masked(scores, neurons):
    return scores.masked_fill(torch.arange(3) == neurons - 3, -torch.inf)


def nan_where_it_was_infinite(scores, neurons):
    return masked_scores(scores, neurons) * (neurons - 3)


def larger_next_to_masked(scores, neurons):
    return masked_scores(scores, neurons) * neurons


@pytest.mark.parametrize(
    ("finish", "difference"),
    [
        (other_scores_masked, "infinite or NaN in other places"),
        (nan_where_it_was_infinite, "infinite or NaN in other places"),
        (larger_next_to_masked, "off, of values up to"),
    ],
)
def test_difference_next_to_infinite_outputs_is_found(finish, difference):
    model = Scores(finish)
    optimizer = optimizer_without(model, {"first": [1]})
    with pytest.raises(CompactionError, match=f"{difference}.*in evaluation mode"):
        compact(model, optimizer, example_inputs=torch.randn(5, 6))


def test_masks_of_another_model_are_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    optimizer = optimizer_without(model, {"0": [1]})
    with pytest.raises(ValueError, match=r"no parameter '0.weight' of shape \(8, 6\)"):
        compact(nn.Sequential(nn.Linear(6, 7)), optimizer, example_inputs=torch.randn(2, 6))


def test_model_with_live_weights_everywhere_does_not_shrink():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", density=0.5, seed=0)
    compacted = compact(model, optimizer, example_inputs=torch.randn(2, 32))
    assert sizes(compacted.model) == sizes(model)
    assert compacted.report.flops_ratio == compacted.report.share_reached == 1.0


def test_channels_last_weights_stay_so():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    model = model.to(memory_format=torch.channels_last)
    smaller = compact(model, optimizer_without_half(model), example_inputs=torch.randn(IMAGE)).model
    assert smaller[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_report_can_be_read():
    model = Residual()
    text = str(
        compact(
            model, optimizer_without(model, {"stem": [0]}), example_inputs=torch.randn(4, 6)
        ).report
    )
    assert "stem.weight" in text
    assert "head reads it, and it is still made by block.weight" in text
    assert "% of the saving reached" in text


class Region(nn.Module):
    """A part of forward() is a separate region of the graph."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 5)
        self.last = nn.Linear(8, 5)

    def forward(self, x, *, scale):
        x = self.first(x * scale).relu()
        with torch.no_grad():
            offset = self.second(x).tanh()
        return self.last(x) + offset


def test_region_of_the_graph_that_is_not_looked_into_blocks_what_goes_into_it():
    model = Region()
    optimizer = optimizer_without(model, {"first": [0]})
    x, scale = torch.randn(4, 6), torch.randn(())
    compacted = compact(model, optimizer, example_inputs=((x,), {"scale": scale}))
    torch.testing.assert_close(compacted.model(x, scale=scale), model(x, scale=scale))
    assert compacted.model.first.out_features == 8
    (reason,) = why(compacted, "first.weight")
    assert "an operator that is not known" in reason


class Twice(nn.Module):
    """One layer reads two kinds of neurons."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8)
        self.shared = nn.Linear(8, 5)

    def forward(self, x):
        return self.shared(self.left(x).tanh()) * self.shared(self.right(x).sigmoid())


def test_layer_that_is_used_twice_shares_its_columns_and_takes_no_constants():
    model = Twice()
    filters = {"left": [0, 1, 2], "right": [0, 1]}
    optimizer = optimizer_without(model, filters)
    compacted = compact(model, optimizer, example_inputs=torch.randn(4, 6))
    agree(model, compacted.model, torch.randn(4, 6))
    assert compacted.model.shared.in_features == 8
    optimizer = optimizer_without(model, filters, {"shared": [1, 2]})
    compacted = compact(model, optimizer, example_inputs=torch.randn(4, 6))
    agree(model, compacted.model, torch.randn(4, 6))
    assert sizes(compacted.model)["shared.weight"] == (5, 6)


def test_hidden_neurons_of_gpt2_go():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=20, use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    mask = torch.ones(8, 32, dtype=torch.bool)
    mask[:, :5] = False
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(
        inner, model, method="static", density=1.0, mask={"transformer.h.0.mlp.c_fc.weight": mask}
    )
    model.transformer.h[0].mlp.c_fc.bias.data[:5] = 0
    ids = torch.arange(12).view(2, 6)
    smaller = compact(model, optimizer, example_inputs={"input_ids": ids}).model
    assert smaller.transformer.h[0].mlp.c_proj.weight.shape == (27, 8)
    torch.testing.assert_close(smaller(input_ids=ids).logits, model(input_ids=ids).logits)


def test_wrappers_are_removed():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    optimizer = optimizer_without(model, {"0": [1]})
    smaller = compact(nn.DataParallel(model), optimizer, example_inputs=torch.randn(4, 6)).model
    assert type(smaller) is nn.Sequential
    assert smaller[0].out_features == 7


def test_constant_that_padding_spoils_on_the_way_stays():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AvgPool2d(3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    compacted = compact(
        model, optimizer_without(model, {"0": [1]}), example_inputs=torch.randn(IMAGE)
    )
    assert compacted.model[0].out_channels == 8
    assert why(compacted, "0.weight") == {
        "no live filter makes it, but it is not one constant where 4 reads it"
    }


def test_report_names_sparse_weights_whose_channels_are_not_known():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 8, batch_first=True)
            self.up = nn.Linear(8, 12)
            self.out = nn.Linear(12, 3)

        def forward(self, x):
            return self.out(torch.relu(self.up(self.lstm(x)[0])))

    model = Tagger()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="static",
        density=0.3,
        sparse={nn.LSTM: True},
    )
    report = compact(model, optimizer, example_inputs=torch.randn(2, 5, 6)).report
    assert report.left_out == ("lstm.weight_ih_l0", "lstm.weight_hh_l0")
    assert "weights without known channels: lstm.weight_ih_l0, lstm.weight_hh_l0" in str(report)


def test_model_that_was_compacted_in_inference_mode_can_be_trained():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    neurons = torch.tensor([True, False, True, True])
    with torch.no_grad():
        model[0].weight[~neurons] = 0
    masks = {"0": neurons[:, None].expand(4, 6)}
    with torch.inference_mode():
        smaller = compact(model, masks, example_inputs=torch.randn(2, 6)).model
    x = torch.randn(5, 6)
    for one in (model, smaller):
        one(x).pow(2).sum().backward()
    torch.testing.assert_close(smaller[0].weight.grad, model[0].weight.grad[neurons])


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.filterwarnings("ignore:The tensor attribute.*assigned during export")
def test_state_in_a_container_is_left_alone_and_goes_on_in_the_smaller_model(kind):
    model, x = Counting(kind).eval(), torch.randn(4, 16)
    optimizer = optimizer_without(model, {"first": [0, 3, 5]})
    model(x)
    before = repr(model.state)
    smaller = compact(model, optimizer, example_inputs=x).model
    assert repr(model.state) == before
    assert smaller.first.weight.shape == (13, 16)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(smaller(x), model(x))
