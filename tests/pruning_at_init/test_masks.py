"""Properties that the masks of all three functions share."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import NoSparseLayerError, SparseOptimizer, grasp, snip, synflow
from sparseopt.distributions import live_counts
from tests.support.nets import SPARSE_NAMES, batch, make
from tests.support.training import train


def by_snip(model, **settings):
    weight = next(model.parameters())
    data = batch(0, device=weight.device, dtype=weight.dtype)
    return snip(model, F.cross_entropy, [data], **settings)


def by_grasp(model, **settings):
    weight = next(model.parameters())
    data = batch(0, device=weight.device, dtype=weight.dtype)
    return grasp(model, F.cross_entropy, [data], **settings)


def by_synflow(model, **settings):
    return synflow(model, (1, 3, 6, 6), rounds=10, **settings)


FUNCTIONS = [by_snip, by_grasp, by_synflow]
every_function = pytest.mark.parametrize("make_masks", FUNCTIONS)


def live(masks):
    return sum(int(mask.sum()) for mask in masks.values())


@every_function
@pytest.mark.parametrize("density", [0.001, 0.037, 0.1, 0.5, 1.0])
def test_counts_are_exact_and_no_layer_is_empty(make_masks, density, device):
    model = make(device=device)
    masks = make_masks(model, density=density)
    shapes = {name: dict(model.named_parameters())[name].shape for name in SPARSE_NAMES}
    assert {name: mask.shape for name, mask in masks.items()} == shapes
    numel = sum(shape.numel() for shape in shapes.values())
    assert live(masks) == max(len(SPARSE_NAMES), round(density * numel))
    for mask in masks.values():
        assert mask.any()
        assert mask.dtype == torch.bool
        assert mask.device == model.conv1.weight.device


@every_function
@pytest.mark.parametrize("init", ["erk", "uniform", {"fc1": 0.5}])
def test_init_sets_the_count_of_each_layer(make_masks, init):
    model = make()
    masks = make_masks(model, density=0.2, init=init)
    shapes = {name: mask.shape for name, mask in masks.items()}
    assert {n: int(m.sum()) for n, m in masks.items()} == live_counts(shapes, 0.2, init)


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_of_the_weights_changes_no_count(make_masks, dtype):
    masks = make_masks(make(dtype=dtype), density=0.1)
    assert live(masks) == live(make_masks(make(), density=0.1))


@every_function
def test_memory_format_does_not_matter(make_masks):
    expected = make_masks(make(dtype=torch.float64), density=0.1)
    masks = make_masks(make(dtype=torch.float64, channels_last=True), density=0.1)
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask), name


class Stateful(nn.Module):
    """All state that a forward pass in training mode could change."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


@every_function
@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(make_masks, training):
    model = Stateful().train(training)
    model.fc.train(not training)
    x, y = batch(3)
    F.cross_entropy(model(x), y).backward()
    model.conv.bias.grad = None
    before = copy.deepcopy(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = {name: grad.clone() for name, grad in gradients.items() if grad is not None}
    assert len(values) == len(gradients) - 1
    buffers = dict(model.named_buffers())
    rng = torch.get_rng_state()
    make_masks(model, density=0.3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for (name, mine), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.grad is gradients[name]
        assert mine.requires_grad
        assert mine.grad is None or torch.equal(mine.grad, values[name]), name
    for (name, mine), theirs in zip(model.named_buffers(), before.buffers(), strict=True):
        assert mine is buffers[name]
        assert torch.equal(mine, theirs), name
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@every_function
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_training_keeps_the_density_that_the_masks_give_each_layer(make_masks, method):
    model = make()
    masks = make_masks(model, density=0.2)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05),
        model,
        mask=masks,
        method=method,
        total_steps=20,
        delta_t=4,
    )
    for name, mask in masks.items():
        assert torch.equal(optimizer.masks[name], mask), name
    train(model, optimizer, 20)
    for layer in optimizer.layers:
        assert layer.live == int(masks[layer.name].sum()), layer.name
        assert not layer.weight[~layer.mask].any()
    moved = any(not torch.equal(optimizer.masks[name], mask) for name, mask in masks.items())
    assert moved is (method == "rigl")


@pytest.mark.parametrize(
    "make_masks",
    [
        lambda net: snip(net, lambda: net(torch.ones(1, 4)).sum(), density=0.25),
        lambda net: synflow(net, (1, 4), density=0.25, rounds=1),
    ],
    ids=["snip", "synflow"],
)
def test_ties_go_to_the_earlier_layer_and_the_lower_index(make_masks):
    """All scores are equal; each layer's first weight comes before all others."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.5)
    first, second = make_masks(net).values()
    assert first.reshape(-1).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert second.reshape(-1).nonzero().flatten().tolist() == [0]


@every_function
def test_masks_are_made_for_weights_that_the_optimizer_makes_sparse(make_masks):
    model = make()
    model.fc1.weight.requires_grad_(False)
    assert list(make_masks(model, density=0.2)) == [n for n in SPARSE_NAMES if "fc1" not in n]


@every_function
@pytest.mark.parametrize("dense", ["fc2", ["fc2.weight"]])
def test_layers_that_stay_dense_are_left_out(make_masks, dense):
    model = make()
    masks = make_masks(model, density=0.2, dense=dense)
    assert list(masks) == [name for name in SPARSE_NAMES if name != "fc2.weight"]
    numel = sum(mask.numel() for mask in masks.values())
    assert live(masks) == round(0.2 * numel)
    rest = [p for name, p in model.named_parameters() if name != "fc2.weight"]
    groups = [{"params": rest}, {"params": [model.fc2.weight], "density": False}]
    optimizer = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, mask=masks)
    assert optimizer.density == live(masks) / numel
    with pytest.raises(ValueError, match=r"dense='nowhere'"):
        make_masks(model, dense="nowhere")


def test_tied_and_unused_weights_are_handled():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.inner = nn.Linear(4, 4)
            self.again = nn.Linear(4, 4)
            self.again.weight = self.inner.weight
            self.unused = nn.Linear(4, 4)
            self.head = nn.Linear(4, 5)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.again(torch.relu(self.inner(x))))

    model = Model()
    x, y = torch.randn(6, 4), torch.arange(6) % 5
    for masks in (
        snip(model, F.cross_entropy, [(x, y)], density=0.5),
        grasp(model, F.cross_entropy, [(x, y)], density=0.5),
        synflow(model, (1, 4), density=0.5),
    ):
        assert list(masks) == ["inner.weight", "unused.weight"]
        assert masks["inner.weight"].sum() + masks["unused.weight"].sum() == 16


@every_function
@pytest.mark.parametrize("density", [0.0, 1.5, -0.1])
def test_density_out_of_range_is_refused(make_masks, density):
    with pytest.raises(ValueError, match="density"):
        make_masks(make(), density=density)


@pytest.mark.parametrize("function", [snip, grasp])
def test_loss_that_cannot_be_evaluated_is_refused(function):
    model, data = make(), batch(0)
    with pytest.raises(TypeError, match="loss="):
        function(model, torch.zeros(()), [data])
    with pytest.raises(TypeError, match="one value"):
        function(model, lambda out, y: out, [data])
    with pytest.raises(TypeError, match="one value"):
        function(model, lambda: torch.zeros(()))
    with pytest.raises(ValueError, match="empty"):
        function(model, F.cross_entropy, [])
    with pytest.raises(TypeError, match="pair"):
        function(model, F.cross_entropy, [data[0]])


@pytest.mark.parametrize("function", [snip, grasp])
def test_loss_that_is_not_finite_is_refused_by_layer(function):
    model, (x, y) = make(), batch(0)
    with pytest.raises(ValueError, match=r"'conv1.weight' is not finite"):
        function(model, F.cross_entropy, [(x * float("nan"), y)])


@every_function
def test_model_without_such_weights_is_refused(make_masks):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x)

    with pytest.raises(NoSparseLayerError, match="Norm"):
        make_masks(Norm())
    with pytest.raises(TypeError, match="model"):
        snip("model", F.cross_entropy, [batch(0)])


@every_function
def test_sharded_weights_are_refused(make_masks):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = torch.distributed.fsdp.fully_shard(make(), mesh=mesh)
        with pytest.raises(TypeError, match=r"'conv1.weight' is a DTensor.*before fully_shard"):
            make_masks(model)
    finally:
        torch.distributed.destroy_process_group()


class ScaledBranch(nn.Module):
    """A residual branch whose output is multiplied by a scale."""

    def __init__(self, scale):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.fc((x + self.scale * torch.tanh(self.branch(x))).mean((2, 3)))


@every_function
@pytest.mark.parametrize("init", [None, "erk", {"branch": 0.5}])
def test_zeros_that_would_be_chosen_by_their_position_are_refused(make_masks, init):
    with pytest.raises(ValueError, match=r"All scores are 0 in branch\.weight.*initialise"):
        make_masks(ScaledBranch(0.0), density=0.5, init=init)
    assert make_masks(ScaledBranch(1.0), density=0.5, init=init)["branch.weight"].any()


@every_function
def test_zeros_are_left_out_if_other_weights_suffice(make_masks):
    masks = make_masks(ScaledBranch(0.0), density=0.1)
    assert live(masks) == round(0.1 * 832)
    assert masks["branch.weight"].sum() == 1


@every_function
@pytest.mark.parametrize("settings", [{"density": 1.0}, {"density": 0.1, "init": {"branch": 1.0}}])
def test_zeros_are_no_problem_where_all_weights_are_kept(make_masks, settings):
    assert make_masks(ScaledBranch(0.0), **settings)["branch.weight"].all()


def test_zeros_of_unused_inputs_are_refused_only_if_some_of_them_would_be_chosen():
    """Half of the inputs are 0, so half of the first layer has scores of 0."""
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    inputs = torch.cat([torch.ones(3, 4), torch.zeros(3, 4)], 1)
    masks = snip(net, F.mse_loss, [(inputs, torch.ones(3, 2))], density=0.6)
    assert live(masks) == 24
    assert not masks["0.weight"][:, 4:].any()
    with pytest.raises(ValueError, match=r"Some scores are 0 in 0\.weight\."):
        snip(net, F.mse_loss, [(inputs, torch.ones(3, 2))], density=0.7)
