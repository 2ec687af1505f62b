"""Which channels a model has, what belongs to each, and which cannot go, with the reason."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.cifar.models import WideResNet
from sparseopt import UntraceableModelError, find_channel_groups
from tests.structured.physical import silence, take_out

IMAGES = (2, 3, 32, 32)


def groups_of(model, *shape):
    return find_channel_groups(model, torch.randn(shape))


def parts(group):
    return {(part.name, part.dim): part for part in group.slices}


def by_name(groups):
    return {group.name: group for group in groups if not group.blocked}


def reasons(groups):
    """Why each dimension is blocked."""
    return {
        (part.name, part.dim): group.blocked
        for group in groups
        for part in group.slices
        if group.blocked
    }


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.outer(F.relu(self.norm(self.inner(x))))
        return self.head(x.mean((2, 3)))


def test_layers_whose_results_are_added_share_their_channels():
    groups = by_name(groups_of(Residual(), *IMAGES))
    assert {(key, part.role) for key, part in parts(groups["stem.weight"]).items()} == {
        (("stem.weight", 0), "producer"),
        (("stem.bias", 0), "bias"),
        (("inner.weight", 1), "consumer"),
        (("outer.weight", 0), "producer"),
        (("outer.bias", 0), "bias"),
        (("head.weight", 1), "consumer"),
    }


def test_normalisation_and_its_statistics_belong_to_the_filters_before_it():
    group = by_name(groups_of(Residual(), *IMAGES))["inner.weight"]
    roles = {part.role: part.name for part in group.slices}
    assert roles == {
        "producer": "inner.weight",
        "scale": "norm.weight",
        "shift": "norm.bias",
        "mean": "norm.running_mean",
        "variance": "norm.running_var",
        "consumer": "outer.weight",
    }


def test_inputs_and_outputs_of_the_model_cannot_go():
    why = reasons(groups_of(Residual(), *IMAGES))
    assert why["stem.weight", 1] == "stem reads them from the model's input"
    assert why["head.weight", 0] == why["head.bias", 0] == "they are outputs of the model"


def test_flattened_channel_owns_one_column_for_each_pixel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 5))
    group = by_name(groups_of(model, 2, 3, 5, 5))["0.weight"]
    columns = parts(group)["2.weight", 1].index
    assert torch.equal(columns, torch.arange(36).view(4, 9))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.last = nn.Conv2d(10, 5, 1)

    def forward(self, x):
        return self.last(self.norm(torch.cat([self.left(x), self.right(x)], 1))).mean((2, 3))


def test_concatenated_layers_keep_channels_of_their_own_at_an_offset():
    groups = by_name(groups_of(Concatenated(), *IMAGES))
    right = parts(groups["right.weight"])
    assert right["norm.running_var", 0].index.flatten().tolist() == list(range(4, 10))
    assert right["last.weight", 1].index.flatten().tolist() == list(range(4, 10))
    assert groups["left.weight"].channels == 4


@pytest.mark.parametrize("groups", [8, 2])
def test_inputs_of_a_grouped_convolution_are_removed_with_its_outputs(groups):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=groups), nn.ReLU(), nn.Conv2d(16, 5, 1)
    )
    found = by_name(groups_of(model, *IMAGES))
    group = parts(found["0.weight"])
    assert found["0.weight"].channels == groups
    assert group["0.weight", 0].index.tolist() == torch.arange(8).view(groups, -1).tolist()
    assert group["1.weight", 0].index.tolist() == torch.arange(16).view(groups, -1).tolist()
    assert group["3.weight", 1].index.tolist() == torch.arange(16).view(groups, -1).tolist()


def test_transposed_convolution_produces_along_its_second_dimension():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 5, 1))
    found = by_name(groups_of(model, *IMAGES))
    assert parts(found["0.weight"])["1.weight", 0].role == "consumer"
    assert parts(found["1.weight"])["1.weight", 1].role == "producer"


class Untidy(nn.Module):
    """One layer for each way in which channels cannot be told apart."""

    def __init__(self):
        super().__init__()
        for name in ("sorts", "halves", "heads", "norm", "groups"):
            self.add_module(name, nn.Linear(6, 8))
        self.layer_norm = nn.LayerNorm(8)
        self.group_norm = nn.GroupNorm(2, 8)
        self.last = nn.ModuleList(nn.Linear(8, 5) for _ in range(5))

    def forward(self, x):
        halves = torch.cat(self.halves(x).chunk(2, 1)[::-1], 1)
        heads = self.heads(x).view(-1, 2, 4).transpose(1, 2).flatten(1)
        parts = (self.sorts(x).sort(1)[0], halves, heads, self.layer_norm(self.norm(x)))
        parts = (*parts, self.group_norm(self.groups(x)))
        return sum(last(part) for last, part in zip(self.last, parts, strict=True))


def test_operation_that_mixes_channels_is_named_as_the_reason():
    why = reasons(groups_of(Untidy(), 3, 6))
    assert "'sort'" in why["sorts.weight", 0]
    assert "separates some of them" in why["halves.weight", 0]
    assert "spreads them over several dimensions" in why["heads.weight", 0]
    assert why["norm.weight", 0] == "layer_norm normalises over them"
    assert why["groups.weight", 0] == "group_norm normalises over groups of them"


def test_neurons_and_heads_of_a_transformer_can_be_removed_but_its_embedding_cannot():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    found = groups_of(model, *IMAGES)
    attention, feed_forward = by_name(found).values()
    assert (attention.kind, attention.channels) == ("head", 2)
    assert (feed_forward.name, feed_forward.kind, feed_forward.channels) == (
        "encoder.layers.encoder_layer_0.mlp.0.weight",
        "neuron",
        24,
    )
    assert "normalises over them" in reasons(found)["conv_proj.weight", 0]


class AuxiliaryHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.body(x)
        return (self.head(x), x) if self.training else self.head(x)


def test_operations_of_training_mode_count_too():
    assert reasons(groups_of(AuxiliaryHead(), 3, 6))["body.weight", 0] == (
        "they are outputs of the model"
    )


class Expanded(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 8)
        self.body = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x, z):
        x = self.body(x)
        return self.last(x * self.gate(z)[:, :, None, None].expand_as(x).permute(0, 1, 3, 2))


def test_channels_are_followed_through_views():
    model = Expanded()
    groups = by_name(find_channel_groups(model, (torch.randn(2, 3, 4, 4), torch.randn(2, 6))))
    assert {part.name for part in groups["body.weight"].slices_of("producer")} == {
        "body.weight",
        "gate.weight",
    }


class Stubborn(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_model_without_a_graph_is_refused_by_name():
    with pytest.raises(UntraceableModelError, match="model=Stubborn.*torch.export refuses"):
        groups_of(Stubborn(), 2, 3)


def test_model_is_left_as_it_was():
    model = WideResNet(10, 1, dropout=0.3)
    model.head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    image = torch.randn(IMAGES)
    torch.set_rng_state(state)
    find_channel_groups(model, image)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


MODELS = {
    "wide residual network": lambda: WideResNet(10, 1),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(
        growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_cut_model_computes_the_same_as_the_model_with_zero_columns(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    image = torch.randn(2, 3, 64, 64)
    chosen = [
        (group, torch.randperm(group.channels)[: group.channels // 3])
        for group in find_channel_groups(model, image)
        if not group.blocked
    ]
    smaller = take_out(model, chosen)
    silence(model, chosen)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in smaller.parameters()) < 0.6 * size
    torch.testing.assert_close(smaller(image), model(image), rtol=1e-4, atol=1e-4)
