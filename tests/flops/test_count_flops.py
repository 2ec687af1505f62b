"""FLOPs of a model with given masks, and the forms that example inputs have."""

import pytest
import torch
from torch import nn

from sparseopt import count_flops
from tests.support.nets import make
from tests.support.wrapping import wrap

X = torch.zeros(2, 3, 6, 6)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, left, right=None):
        out = self.left(left)
        return out if right is None else out + self.right(right)


LEFT, RIGHT = torch.zeros(1, 4), torch.zeros(1, 6)
#: Two FLOPs for each weight, and one addition for each bias.
LEFT_FLOPS, RIGHT_FLOPS = 2 * 4 * 5 + 5, 2 * 6 * 5 + 5


def test_count_flops_with_masks_of_an_optimizer_equals_its_own_figures():
    model = make()
    optimizer = wrap(model, method="static")
    expected = optimizer.flops(model, X)
    found = count_flops(model, X, masks=optimizer.masks)
    assert found.layers == expected.layers
    assert found.inference_sparse == expected.inference_sparse
    assert found.train_sparse == expected.train_sparse
    assert found.density == pytest.approx(expected.density)


def test_count_flops_without_masks_is_dense():
    report = count_flops(TwoInputs(), LEFT)
    assert report.inference_sparse == report.inference_dense == LEFT_FLOPS
    assert report.train_sparse == report.train_dense == 3 * LEFT_FLOPS
    assert report.density == 1.0


def test_count_flops_takes_names_of_modules_and_of_wrapped_parameters():
    model = TwoInputs()
    mask = torch.zeros(5, 4, dtype=torch.bool)
    mask[0] = True
    reports = [
        count_flops(model, LEFT, masks={name: mask})
        for name in ("left", "left.weight", "module.left.weight")
    ]
    assert all(report.inference_sparse == 2 * 4 + 5 for report in reports)
    assert all(report.density == 0.2 for report in reports)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"left.wieght": torch.ones(5, 4, dtype=torch.bool)}, ValueError, "mean 'left.weight'"),
        ({"left": torch.ones(5, 4)}, TypeError, "must be a bool tensor"),
        ({"left": torch.ones(4, 5, dtype=torch.bool)}, ValueError, r"has shape \(4, 5\)"),
        (
            dict.fromkeys(("left", "left.weight"), torch.ones(5, 4, dtype=torch.bool)),
            ValueError,
            "two masks for 'left.weight'",
        ),
    ],
)
def test_count_flops_refuses_masks_that_do_not_fit(masks, error, message):
    with pytest.raises(error, match=message):
        count_flops(TwoInputs(), LEFT, masks=masks)


EXAMPLES = [
    (LEFT, LEFT_FLOPS),
    ((LEFT,), LEFT_FLOPS),
    ((LEFT, RIGHT), LEFT_FLOPS + RIGHT_FLOPS),
    ([LEFT, RIGHT], LEFT_FLOPS + RIGHT_FLOPS),
    ({"left": LEFT, "right": RIGHT}, LEFT_FLOPS + RIGHT_FLOPS),
    (((LEFT,), {"right": RIGHT}), LEFT_FLOPS + RIGHT_FLOPS),
]


@pytest.mark.parametrize(("example_inputs", "flops"), EXAMPLES)
def test_example_inputs_have_the_same_forms_with_and_without_optimizer(example_inputs, flops):
    model = TwoInputs()
    assert count_flops(model, example_inputs).inference_dense == flops
    optimizer = wrap(model)
    assert optimizer.flops(model, example_inputs).inference_dense == flops
    assert optimizer.flops(example_inputs=example_inputs).inference_dense == flops


def test_example_inputs_of_the_optimizer_can_be_given_again():
    model = TwoInputs()
    optimizer = wrap(model)
    model(LEFT, right=RIGHT).square().sum().backward()
    optimizer.step()
    recorded = optimizer.example_inputs()
    assert count_flops(model, recorded).inference_dense == LEFT_FLOPS + RIGHT_FLOPS


class Detector(nn.Module):
    """Takes a list of tensors, as the detectors of torchvision do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, samples, targets=None):
        return [self.layer(sample) for sample in samples]


def test_images_in_a_list_are_samples():
    model = Detector(nn.Conv2d(3, 8, 3, bias=False))
    image, wide = torch.zeros(3, 10, 10), torch.zeros(3, 10, 20)
    a_image, a_wide = 2 * 216 * 8 * 8, 2 * 216 * 8 * 18
    assert count_flops(model, ([image],)).inference_dense == a_image
    assert count_flops(model, ([image, image],)).inference_dense == a_image
    report = count_flops(model, {"samples": [image, wide], "targets": [{"boxes": image[0]}]})
    assert report.inference_dense == (a_image + a_wide) / 2


def test_sequences_of_several_lengths_in_a_list_are_samples():
    model = Detector(nn.Linear(4, 5, bias=False))
    report = count_flops(model, ([torch.zeros(7, 4), torch.zeros(2, 4), torch.zeros(3, 4)],))
    assert report.inference_dense == 2 * 20 * 12 / 3


def test_samples_of_an_input_whose_batch_is_not_first():
    """Two layers of four gates, each with two biases, at each of 7 positions."""
    model = nn.LSTM(4, 5, num_layers=2)
    sequences = torch.zeros(7, 3, 4)
    gates = 7 * (4 * (2 * 4 * 5 + 2 * 5 * 5 + 2 * 5) + 4 * (2 * 5 * 5 + 2 * 5 * 5 + 2 * 5))
    assert count_flops(model, sequences, samples=3).inference_dense == gates
    assert count_flops(model, sequences).inference_dense == gates * 3 / 7

    optimizer = wrap(model, method="static", density=0.5, sparse={nn.LSTM: True})
    expected = count_flops(model, sequences, samples=3, masks=optimizer.masks)
    assert optimizer.flops(model, sequences, samples=3).layers == expected.layers
    optimizer.zero_grad()
    model(sequences)[0].sum().backward()
    optimizer.step()
    replayed = optimizer.flops(samples=3)
    assert replayed.layers == expected.layers
    assert replayed.train_measured == expected.train_sparse


def test_samples_of_an_input_without_dimensions():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5, bias=False)

        def forward(self, scale):
            return self.layer(scale.expand(6, 4))

    with pytest.raises(ValueError, match="pass samples="):
        count_flops(Repeated(), torch.tensor(1.0))
    assert count_flops(Repeated(), torch.tensor(1.0), samples=2).inference_dense == 3 * 40


@pytest.mark.parametrize(
    ("samples", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_wrong_samples_are_refused(samples, error):
    with pytest.raises(error, match=f"samples={samples!r}"):
        count_flops(TwoInputs(), LEFT, samples=samples)


def test_batches_in_a_list_are_not_samples():
    """The maps of a feature pyramid, with the batch first."""
    model = Detector(nn.Conv2d(3, 8, 1, bias=False))
    report = count_flops(model, ([torch.zeros(5, 3, 4, 4), torch.zeros(5, 3, 2, 2)],))
    assert report.inference_dense == 2 * 24 * (16 + 4)


class OfLengths(nn.Module):
    """Fails for sequences of length 0. The lengths may be floating-point numbers."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.long(), True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0])


def test_model_that_does_not_run_with_zeros_needs_inputs():
    model, inputs = OfLengths(), (torch.randn(2, 3, 4), torch.tensor([1.0, 3.0]))
    optimizer = wrap(model)
    model(*inputs).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"pass example_inputs=.*greater than 0") as caught:
        optimizer.flops()
    assert isinstance(caught.value.__cause__, RuntimeError)
    # The sequences have 4 elements, so 2 a sample.
    elements = 2 * (2 * 20 * 4 + 20 + 2 * 20 * 5 + 20)
    report = optimizer.flops(example_inputs=inputs)
    assert report.inference_dense == elements + 2 * 5 + 1
    with pytest.raises(RuntimeError, match="greater than 0"):
        optimizer.flops(example_inputs=(inputs[0], torch.zeros(2, dtype=torch.long)))


def test_integers_of_the_first_input_are_replayed():
    model, inputs = OfLengths(), (torch.randn(2, 3, 4), torch.tensor([1, 3]))
    optimizer = wrap(model)
    model(*inputs).sum().backward()
    optimizer.step()
    expected = optimizer.flops(example_inputs=inputs).inference_dense
    assert optimizer.flops().inference_dense == expected


def test_floating_point_values_of_inputs_are_not_kept():
    model = TwoInputs()
    optimizer = wrap(model)
    model(torch.ones(1, 4), right=torch.ones(1, 6)).sum().backward()
    args, kwargs = optimizer.example_inputs()
    assert not args[0].any()
    assert not kwargs["right"].any()


def test_flops_with_several_positional_inputs_warns_and_counts_all():
    model = TwoInputs()
    optimizer = wrap(model)
    with pytest.warns(DeprecationWarning, match="example_inputs=") as caught:
        report = optimizer.flops(model, LEFT, RIGHT)
    assert report.inference_dense == LEFT_FLOPS + RIGHT_FLOPS
    assert caught[0].filename == __file__


class Graph(nn.Module):
    """A layer of a graph network, whose adjacency is a buffer of sparse layout or an argument."""

    def __init__(self, product, *, buffer):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)
        self.product, self.buffer = product, buffer
        if buffer:
            self.register_buffer("adjacency", torch.eye(5).to_sparse())

    def forward(self, x, adjacency=None):
        adjacency = self.adjacency if self.buffer else adjacency
        return self.product(adjacency, self.second(self.product(adjacency, self.first(x)).relu()))


#: A sample is a node.
GRAPH_FLOPS = 2 * 8 * 16 + 16 + 2 * 16 * 4


@pytest.mark.parametrize("product", [torch.sparse.mm, torch.mm, torch.matmul])
@pytest.mark.parametrize("buffer", [False, True])
def test_graph_networks_with_a_sparse_adjacency(product, buffer):
    model = Graph(product, buffer=buffer)
    inputs = (torch.zeros(5, 8),) if buffer else (torch.zeros(5, 8), torch.eye(5).to_sparse())
    assert count_flops(model, inputs).inference_dense == GRAPH_FLOPS
    optimizer = wrap(model, method="static")
    before = optimizer.masks
    model(*inputs).square().mean().backward()
    optimizer.step()
    report = optimizer.flops()
    assert report.inference_dense == GRAPH_FLOPS
    assert report.inference_sparse == count_flops(model, inputs, masks=before).inference_sparse
    if buffer:
        assert torch.equal(model.adjacency.to_dense(), torch.eye(5))


class Product(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.multiply = multiply

    def forward(self, x):
        return self.multiply(x, self.weight)


@pytest.mark.parametrize(
    "multiply",
    [
        torch.sparse.mm,
        lambda x, weight: torch.sparse.mm(x.to_sparse(), weight),
        lambda x, weight: torch.sparse.addmm(torch.zeros(5, 4), x.to_sparse(), weight),
        lambda x, weight: torch.addbmm(torch.zeros(5, 4), x[None], weight[None]),
        lambda x, weight: torch.stack([torch.mv(weight.t(), row) for row in x]),
        lambda x, weight: torch.stack(
            [torch.stack([torch.dot(row, column) for column in weight.t()]) for row in x]
        ),
    ],
)
def test_every_product_by_a_weight_counts(multiply):
    model = Product(multiply)
    assert count_flops(model, torch.ones(5, 8)).inference_dense == 2 * 8 * 4
    mask = torch.zeros(8, 4, dtype=torch.bool)
    mask[:3] = True
    report = count_flops(model, torch.ones(5, 8), masks={"weight": mask})
    assert report.inference_sparse == 2 * 3 * 4


def test_addition_of_a_vector_to_a_product_counts():
    model = Product(
        lambda x, weight: torch.stack([torch.addmv(x[0, :4], weight.t(), r) for r in x])
    )
    assert count_flops(model, torch.ones(5, 8)).inference_dense == 2 * 8 * 4 + 4


def test_dropped_entries_of_a_bias_cost_nothing():
    mask, bias_mask = torch.zeros(16, 32, dtype=torch.bool), torch.zeros(16, dtype=torch.bool)
    mask[:4], bias_mask[:4] = True, True
    masks = {"weight": mask, "bias": bias_mask}
    report = count_flops(nn.Linear(32, 16), torch.ones(1, 32), masks=masks)
    assert report.inference_dense == 2 * 32 * 16 + 16
    assert report.inference_sparse == 2 * 32 * 4 + 4


def test_vmap_in_the_forward_pass_hides_no_operation():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))

    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return torch.func.vmap(self.inner)(x)

    x = torch.zeros(5, 8)
    expected = count_flops(model, x).inference_dense
    assert expected == GRAPH_FLOPS
    assert count_flops(Mapped(), x).inference_dense == expected


def test_first_input_is_a_copy_and_is_not_recorded_under_transforms():
    """A loop may reuse its tensor of lengths; inside vmap and grad, tensors are not real ones."""

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = nn.Embedding(10, 8), nn.Linear(8, 4, bias=False)

        def forward(self, tokens, length):
            return self.linear(self.embedding(tokens)[:, : int(length.max())].mean(1))

    model, tokens, length = Cut(), torch.zeros(2, 6, dtype=torch.long), torch.tensor(3)
    optimizer = wrap(model, method="static")

    def loss(weights, own):
        return torch.func.functional_call(model.linear, weights, (own.float(),)).sum()

    own = {name: weight.detach() for name, weight in model.linear.named_parameters()}
    torch.func.grad(loss)(own, torch.ones(2, 8))
    model(tokens, length).sum().backward()
    optimizer.step()
    length.fill_(6)
    assert optimizer.example_inputs()[0][1] == 3
