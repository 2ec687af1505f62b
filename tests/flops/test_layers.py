"""What counts, layer by layer: against formulas written out by hand."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import SparseOptimizer, count_flops
from tests.support import wrapping
from tests.support.nets import make
from tests.support.training import train

wrap = partial(wrapping.wrap, density=1.0, method="static", total_steps=None, seed=None)


def report_of(model, *inputs, **settings):
    return wrap(model, **settings).flops(model, inputs)


def by_name(report):
    return {layer.name: layer.dense for layer in report.layers}


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3), (12,)),
    "1d, strided and dilated": (lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2), (12,)),
    "2d, not square": (lambda: nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), (7, 9)),
    "2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (7, 9)),
    "2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (7, 9)),
    "2d, strided and dilated": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2), (9, 9)),
    "2d, same": (lambda: nn.Conv2d(4, 6, 5, padding="same"), (7, 9)),
    "2d, circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (7, 9)),
    "2d, reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (7, 9)),
    "2d, replicate": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (7, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1)), (3, 7, 5)),
}
TRANSPOSED = {
    "1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (5,)),
    "2d": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=2, output_padding=1), (5, 4)),
    "2d, grouped and dilated": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), (5, 4)),
    "3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (3, 4, 5)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_costs_two_flops_for_each_weight_at_each_output_position(kind):
    build, size = CONVOLUTIONS[kind]
    model = build()
    x = torch.zeros(2, 4, *size)
    positions = math.prod(model(x).shape[2:])
    kernel = math.prod(model.kernel_size)
    taps = model.out_channels * (model.in_channels // model.groups) * kernel
    assert report_of(model, x).inference_dense == 2 * positions * taps


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_convolution_costs_two_flops_for_each_weight_at_each_input_position(kind):
    build, size = TRANSPOSED[kind]
    model = build()
    taps = model.in_channels * (model.out_channels // model.groups) * math.prod(model.kernel_size)
    report = report_of(model, torch.zeros(2, 4, *size))
    assert report.inference_dense == 2 * math.prod(size) * taps


@pytest.mark.parametrize("kind", ["1d, strided and dilated", "2d, grouped", "3d"])
def test_sparse_convolution_costs_the_share_that_is_live(kind):
    build, size = CONVOLUTIONS[kind]
    model = build()
    optimizer = wrap(model, density=0.3)
    report = optimizer.flops(model, torch.zeros(2, 4, *size))
    assert report.inference_ratio == pytest.approx(optimizer.density)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_takes_any_number_of_leading_dimensions(leading, bias):
    model = nn.Linear(6, 4, bias=bias)
    x = torch.zeros(*leading, 6)
    rows, samples = math.prod(leading), x.shape[0]
    report = report_of(model, x)
    assert report.inference_dense * samples == pytest.approx(rows * (2 * 6 * 4 + 4 * bias))


@pytest.mark.parametrize("leading", [(3,), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_layer_costs_two_flops_for_each_live_weight_and_row(leading, bias):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Bilinear(8, 4, 6, bias=bias)
            self.last = nn.Linear(6, 5, bias=False)

        def forward(self, x, y):
            return self.last(self.pair(x, y))

    model = Net()
    optimizer = wrap(model, density=0.25, sparse={nn.Bilinear: True}, init="uniform")
    report = optimizer.flops(model, (torch.randn(*leading, 8), torch.randn(*leading, 4)))
    rows = math.prod(leading[1:])
    (pair,) = (layer for layer in report.layers if layer.name == "pair.weight")
    live = int(optimizer.masks["pair.weight"].sum())
    additions = rows * 6 if bias else 0
    assert pair.dense == 2 * rows * 8 * 4 * 6 + additions
    assert pair.sparse == 2 * rows * live + additions


def test_linear_layer_takes_inputs_that_are_not_contiguous():
    report = report_of(nn.Linear(6, 4), torch.zeros(3, 6, 2).transpose(1, 2))
    assert report.inference_dense == 2 * (2 * 6 * 4 + 4)


class Attention(nn.Module):
    def __init__(self, need_weights, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)
        self.need_weights = need_weights

    def forward(self, query, memory):
        return self.attention(query, memory, memory, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_attention_costs_its_projections(need_weights, training, own):
    """Query and output are projected for 3 tokens, key and value for 5; scores don't count."""
    sizes = {"kdim": 6, "vdim": 6} if own else {}
    model = Attention(need_weights, **sizes).train(training)
    width = 6 if own else 8
    report = report_of(model, torch.zeros(2, 3, 8), torch.zeros(2, 5, width))
    query, output = 3 * (2 * 8 * 8 + 8), 3 * (2 * 8 * 8 + 8)
    key, value = 5 * (2 * width * 8 + 8), 5 * (2 * width * 8 + 8)
    assert report.inference_dense == pytest.approx(query + key + value + output)


def test_sparse_attention_costs_the_live_weights_of_each_projection():
    """Query, key and value lie in one weight, and are used for different numbers of tokens."""
    model = Attention(need_weights=False)
    packed = torch.zeros(24, 8, dtype=torch.bool)
    packed[:8, :1], packed[8:16, :2], packed[16:, :3] = True, True, True
    optimizer = wrap(model, mask={"attention.in_proj_weight": packed})
    report = optimizer.flops(model, (torch.zeros(1, 3, 8), torch.zeros(1, 5, 8)))
    projections = 2 * 8 * (3 * 1 + 5 * 2 + 5 * 3) + 8 * (3 + 5 + 5)
    output = 3 * (2 * 8 * 8 + 8)
    assert report.inference_sparse == projections + output


def test_fast_path_of_a_transformer_layer_hides_nothing():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    report = report_of(layer, torch.zeros(1, 3, 8))
    expected = 3 * (4 * (2 * 8 * 8 + 8) + (2 * 8 * 16 + 16) + (2 * 16 * 8 + 8))
    assert report.inference_dense == expected
    assert torch.backends.mha.get_fastpath_enabled() is enabled


class Functional(nn.Module):
    """Parameters without modules; the name of the bias does not show which weight it belongs to."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(4, 5))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = F.conv2d(x, self.kernel, padding=1).mean((2, 3))
        return F.linear(x, weight=self.matrix, bias=self.shift)


def test_functional_calls_on_a_parameter_count():
    model = Functional()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.named_parameters(), lr=0.1), method="static", density=0.2, init="er"
    )
    report = optimizer.flops(model, torch.zeros(2, 3, 6, 6))
    assert by_name(report) == {"kernel": 2 * 135 * 36, "matrix": 2 * 20 + 4}
    live = {layer.name: layer.live for layer in optimizer.layers}
    assert report.inference_sparse == 2 * live["kernel"] * 36 + 2 * live["matrix"] + 4


def test_module_used_twice_costs_twice_and_an_unused_module_costs_nothing():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = nn.Linear(4, 4)
            self.never = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.twice.weight

        def forward(self, x):
            return self.tied(self.twice(self.twice(x)))

    report = report_of(Model(), torch.zeros(1, 4))
    assert by_name(report) == {"twice.weight": 3 * (2 * 16 + 4)}


def test_products_of_activations_do_not_count():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            x = self.project(x)
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    assert report_of(Model(), torch.zeros(1, 3, 4)).inference_dense == 3 * 2 * 16


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w.t(),
        lambda x, w: torch.einsum("bi,oi->bo", x, w),
        lambda x, w: torch.addmm(torch.zeros(5), x, w.t()) - 0,
        lambda x, w: torch.bmm(x.unsqueeze(1), w.t().expand(len(x), 4, 5)),
    ],
    ids=["matmul", "einsum", "addmm", "bmm"],
)
def test_products_that_a_model_writes_out_count(product):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(5, 4))
            self.other = nn.Linear(1, 1)

        def forward(self, x):
            return product(x, self.matrix)

    report = report_of(Model(), torch.zeros(3, 4))
    assert report.layers[0].name == "matrix"
    assert report.inference_dense in (2 * 20, 2 * 20 + 5)


#: Products of inputs with the first of two matrices.
COPIES = {
    "transposed": lambda x, w: x @ w[0].t().contiguous(),
    "part of a cast": lambda x, w: x @ w.bfloat16().float()[0].t(),
    "copy of a copy": lambda x, w: x @ w.transpose(1, 2).contiguous().double().float()[0],
    "einsum": lambda x, w: torch.einsum("bi,hoi->bho", x, w[:1]),
}


@pytest.mark.parametrize("product", COPIES.values(), ids=COPIES)
def test_copies_of_a_weight_in_any_layout_have_its_mask(product):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrices = nn.Parameter(torch.randn(2, 5, 4))

        def forward(self, x):
            return product(x, self.matrices)

    mask = torch.zeros(2, 5, 4, dtype=torch.bool)
    mask[0, 0] = mask[0, :, 1] = mask[1, 2] = True
    report = count_flops(Model(), torch.zeros(3, 4), masks={"matrices": mask})
    assert (report.inference_dense, report.inference_sparse) == (2 * 20, 2 * 8)


#: Products of inputs with a matrix whose zeros are those of the first of two matrices.
SCALED = {
    "a number": lambda x, w, s: F.linear(x, w[0] * 0.5),
    "a number by hand": lambda x, w, s: x @ (w[0] / 3).t(),
    "inputs": lambda x, w, s: F.linear(x, s * w[0]),
    "outputs": lambda x, w, s: (s[:1, None] * w)[0] @ x.t(),
    "an index": lambda x, w, s: F.linear(x, w[torch.tensor(0)]),
    "an index by input": lambda x, w, s: torch.bmm(x[:, None], w[torch.zeros(3).long()].mT),
    "a part": lambda x, w, s: F.linear(x, w.index_select(0, torch.tensor([0])).squeeze(0) * s),
    "an index in the transpose": lambda x, w, s: x @ w.transpose(1, 2)[torch.tensor([0])][0],
}


@pytest.mark.parametrize("product", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize(
    "decorator", [torch.no_grad(), torch.inference_mode()], ids=["", "inference"]
)
def test_multiples_and_entries_of_a_weight_have_its_mask(product, decorator):
    """Equalised learning rates scale weights, and mixtures of experts index them."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrices = nn.Parameter(torch.randn(2, 5, 4))
            self.scales = nn.Parameter(torch.randn(4))

        @decorator
        def forward(self, x):
            return product(x, self.matrices, self.scales)

    mask = torch.zeros(2, 5, 4, dtype=torch.bool)
    mask[0, 0] = mask[0, :, 1] = mask[1, 2] = True
    report = count_flops(Model(), torch.zeros(3, 4), masks={"matrices": mask})
    assert (report.inference_dense, report.inference_sparse) == (2 * 20, 2 * 8)


def test_filters_that_are_modulated_for_each_image_have_their_mask():
    """As in StyleGAN 2: a grouped convolution with filters of its own for each image."""

    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x, style):
            filters = (self.filters * style[:, None, :, None, None]).flatten(0, 1)
            return F.conv2d(x.view(1, -1, 8, 8), filters, padding=1, groups=len(x))

    mask = torch.rand(6, 4, 3, 3) < 0.3
    inputs = torch.zeros(5, 4, 8, 8), torch.zeros(5, 4)
    report = count_flops(Modulated(), inputs, masks={"filters": mask})
    assert report.inference_dense == 2 * 64 * mask.numel()
    assert report.inference_sparse == 2 * 64 * int(mask.sum())


def test_copy_of_heads_for_einsum_has_their_mask():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.Parameter(torch.randn(2, 8, 4))

        def forward(self, x):
            return torch.einsum("bnd,hdk->bhnk", x, self.heads)

    model = Model()
    optimizer = wrap(model, density=0.3, init="er", sparse={"heads": True})
    report = optimizer.flops(model, torch.zeros(3, 5, 8))
    assert report.inference_dense == 5 * 2 * 64
    assert report.inference_sparse == 5 * 2 * int(optimizer.masks["heads"].sum())


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_cost_their_live_weights_for_each_of_their_rows(transposed):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            shape = (3, 4, 8) if transposed else (3, 8, 4)
            self.experts = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            weight = self.experts.transpose(1, 2) if transposed else self.experts
            ends = torch.tensor([2, 2, 5], dtype=torch.int32)
            return F.grouped_mm(x, weight, offs=ends)

    model = Experts()
    optimizer = wrap(model, density=0.3, init="er", sparse={"experts": True})
    report = optimizer.flops(model, torch.zeros(6, 8))
    live = optimizer.masks["experts"].sum((1, 2)).tolist()
    assert len(set(live)) > 1
    assert report.inference_dense * 6 == 5 * 2 * 32
    assert report.inference_sparse * 6 == 2 * (2 * live[0] + 0 * live[1] + 3 * live[2])


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(4, 4, 1)])
def test_weights_that_are_computed_count_as_dense(build):
    """Inputs are multiplied by computed weights, which have no mask."""
    layer = torch.nn.utils.parametrizations.weight_norm(build())
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 2, bias=False))
    x = torch.zeros(1, 4) if isinstance(layer, nn.Linear) else torch.zeros(1, 4, 1)
    report = report_of(model, x, density=0.5, init={"2": 0.5})
    assert report.computed == 2 * 16 + 4 * isinstance(layer, nn.Linear)
    assert report.inference_sparse == report.computed + 2 * 4


def test_recurrent_layers_cost_a_linear_map_a_step_on_every_backend():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    enabled = torch.backends.mkldnn.enabled
    report = report_of(Model(), torch.zeros(2, 3, 6))
    assert by_name(report) == {
        "lstm.weight_ih_l0": 3 * (2 * 16 * 6 + 16),
        "lstm.weight_hh_l0": 3 * (2 * 16 * 4 + 16),
        "head.weight": 3 * (2 * 4 * 2 + 2),
    }
    assert torch.backends.mkldnn.enabled == enabled


X = torch.zeros(2, 3, 6, 6)


def test_model_moved_to_another_memory_format_costs_the_same():
    """Masks have the layout that weights had at the last step."""
    model = make()
    optimizer = wrap(model, density=0.2)
    before = optimizer.flops(model, X)
    model.to(memory_format=torch.channels_last)
    assert optimizer.flops(model, X) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_of_any_dtype_costs_the_same(dtype):
    expected = report_of(make(), X, density=0.2, seed=1)
    model = make(dtype=dtype)
    report = wrap(model, density=0.2, seed=1).flops(model, X.to(dtype))
    assert report == expected


@pytest.mark.parametrize("warm", [False, True])
def test_flops_are_the_same_under_autocast(warm):
    """Autocast caches casts of weights; casts from an earlier forward pass hide nothing."""
    model = make()
    optimizer = wrap(model, density=0.2)
    expected = optimizer.flops(model, X)
    with torch.autocast("cpu", torch.bfloat16):
        if warm:
            model(X)
        assert optimizer.flops(model, X) == expected


def test_gradients_exist_after_flops_under_autocast():
    """A cast that counting left in autocast's cache would have no gradient."""
    model = make()
    optimizer = wrap(model, density=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.flops(model, X)
        model(X).float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class EveryOperator(nn.Module):
    """Convolutions, recurrence, attention and products; `infers` enters inference mode itself."""

    def __init__(self):
        super().__init__()
        self.infers = False
        self.conv = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.lstm = nn.LSTM(15, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        with torch.inference_mode(self.infers):
            x = self.lstm(self.up(self.conv(x)).flatten(2))[0]
            x = self.attention(x, x, x)[0]
            return torch.einsum("nlc,cd->nld", x, self.matrix), x @ self.matrix


@pytest.mark.parametrize("infers", [False, True])
def test_flops_in_inference_mode_are_the_same(infers):
    model = EveryOperator()
    optimizer = wrap(model, density=0.5, init="er", sparse={"lstm": True, "matrix": True})
    x = torch.zeros(2, 3, 6, 4)
    expected = optimizer.flops(model, x)
    assert by_name(expected)["conv.weight"] == 2 * 216 * 8
    model.infers = infers
    with torch.inference_mode(not infers):
        assert optimizer.flops(model, x) == expected


def test_copy_of_the_model_is_counted_with_the_masks():
    model = make()
    optimizer = wrap(model, density=0.2)
    expected = optimizer.flops(model, X)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert optimizer.flops(copy.deepcopy(model), X) == expected
    assert optimizer.flops(averaged, X) == expected


def test_part_of_the_model_is_counted_with_the_masks():
    model = nn.Sequential(make(), nn.Linear(5, 5))
    optimizer = wrap(model, density=0.2)
    live = {layer.name: layer.live for layer in optimizer.layers}
    report = optimizer.flops(model[0].conv1, X)
    assert report.inference_sparse == 2 * 36 * live["0.conv1.weight"]


def test_model_with_other_weights_is_refused():
    optimizer = wrap(make())
    with pytest.raises(ValueError, match=r"Linear.*has no weight that this optimizer trains"):
        optimizer.flops(nn.Linear(2, 2), torch.zeros(1, 2))


def test_empty_batch_is_refused():
    model = make()
    with pytest.raises(ValueError, match="at least one sample"):
        wrap(model).flops(model, X[:0])


def test_measured_costs_are_the_same_without_names():
    """Layers that are called by position are found by their weights."""
    settings = {"method": "pruning", "density": 0.2, "delta_t": 2, "total_steps": 20, "init": "er"}
    named_model, other_model = make(), make()
    named = SparseOptimizer(
        torch.optim.SGD(named_model.named_parameters(), lr=0.01), None, **settings
    )
    other = SparseOptimizer(torch.optim.SGD(other_model.parameters(), lr=0.01), None, **settings)
    train(named_model, named, 20)
    train(other_model, other, 20)
    expected = named.flops(named_model, X)
    assert other.flops(other_model, X) == expected
    assert expected.train_measured > 3 * expected.inference_sparse


class Stateful(nn.Module):
    """A buffer that forward writes to, one that it replaces, dropout and running statistics."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        self.written += 1
        self.replaced = self.replaced + 1
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


def test_flops_leaves_a_model_that_changes_itself_as_it_was():
    model = Stateful()
    optimizer = wrap(model, density=0.2)
    loss = model(torch.randn(4, 3, 6, 6)).square().mean()
    buffers, values = dict(model.named_buffers()), copy.deepcopy(dict(model.named_buffers()))
    rng = torch.get_rng_state()
    optimizer.flops()
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert model.drop.training
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name]), name
    loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.flops()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, before[name]), name


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_model_wrapped_for_data_parallel_training_costs_the_same(one_rank):
    expected = report_of(make(), X, density=0.2, seed=1)
    model = make()
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = SparseOptimizer(
        torch.optim.SGD(ddp.parameters(), lr=0.1), ddp, method="static", density=0.2, seed=1
    )
    ddp(X).sum().backward()
    assert optimizer.flops() == optimizer.flops(ddp, X) == optimizer.flops(model, X) == expected
    ddp(X).sum().backward()
    optimizer.step()
    assert optimizer.steps == 1


def fully_sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = make(), init_device_mesh("cpu", (1,))
    fully_shard(model.conv1, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def test_sharded_weights_cost_the_same_and_stay_sharded(one_rank):
    expected = report_of(make(), X, density=0.2, seed=1)
    model = fully_sharded()
    optimizer = wrap(model, density=0.2, seed=1)
    model(X).sum().backward()
    for _ in range(2):
        assert optimizer.flops() == expected
        assert all(hasattr(p, "full_tensor") for p in model.parameters())


def test_weights_of_a_step_after_the_probe_are_used(one_rank):
    """Otherwise FSDP2 would keep using the weights that it gathered for the forward pass."""
    model, other = fully_sharded(), fully_sharded()
    optimizer, plain = (wrap(m, density=0.2, seed=1) for m in (model, other))
    x = torch.randn(4, 3, 6, 6)
    for counted, trained in ((True, model), (False, other)):
        trained(x).sum().backward()
        if counted:
            optimizer.flops(model, x)
    optimizer.step()
    plain.step()
    assert torch.equal(model(x), other(x))
