"""SRigL: one fan-in for all neurons of a layer that are not ablated."""

import pytest
import torch
from torch import nn

from sparseopt import Smoothed, SparseOptimizer, SRigL, final_masks
from tests import oracle
from tests.support.agreement import assert_run_is_that_by_hand, run_against_oracle
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.looking import assert_dropped_are_fresh, logical
from tests.support.nets import make
from tests.support.oracles import oracle_for
from tests.support.training import train
from tests.support.wrapping import settings_with, wrap

STEPS = 48
SETTINGS = settings_with(total_steps=STEPS, delta_t=4, init="erk")
# So high that many neurons of the small net have too few salient weights.
HARSH = 0.9


def wrapped(method, name="SGD", state="auto", *, form=None, **more):
    settings = {**SETTINGS, **more}
    model = make(**(form or {}))
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, state=state, **settings)
    reference = oracle_for(
        "srigl",
        model,
        gamma=getattr(method, "gamma", 0.3),
        regrow=getattr(method, "regrow", "keep"),
        **settings,
    )
    return model, optimizer, reference


def fan_ins(layer):
    return logical(layer.mask).reshape(layer.weight.shape[0], -1).sum(1)


def ablated(optimizer):
    return {layer.name: int((fan_ins(layer) == 0).sum()) for layer in optimizer.layers}


def assert_constant_fan_in(optimizer):
    for layer in optimizer.layers:
        fan_in = fan_ins(layer)
        active = fan_in[fan_in > 0]
        assert len(set(active)) == 1, layer.name
        assert active[0] == layer.target // len(active), layer.name
        assert layer.target - len(active) < layer.live <= layer.target, layer.name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, dtype, channels_last, state, device):
    form = {"dtype": dtype, "channels_last": channels_last, "device": device}
    model, optimizer, reference = wrapped("srigl", name, state, form=form)
    first = {layer: mask.copy() for layer, mask in reference.masks.items()}
    assert run_against_oracle(model, optimizer, reference, STEPS) == 8
    assert_constant_fan_in(optimizer)
    assert any((first[layer] != mask).mean() > 0.1 for layer, mask in reference.masks.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("regrow", ["keep", "zero"])
def test_updates_that_ablate_agree_with_the_oracle(regrow, dtype, state, device):
    method = SRigL(gamma=HARSH, regrow=regrow)
    form = {"dtype": dtype, "device": device}
    model, optimizer, reference = wrapped(method, "AdamW", state, form=form, alpha=0.6)
    seen = []

    def look(*_):
        assert_constant_fan_in(optimizer)
        seen.append(ablated(optimizer))

    assert run_against_oracle(model, optimizer, reference, STEPS, on_update=look) == 8
    assert max(number["fc1.weight"] for number in seen) >= 3


def test_neuron_comes_back_when_it_would_have_salient_weights_again():
    model = nn.Sequential(nn.Linear(10, 4, bias=False), nn.Linear(4, 2))
    start = torch.zeros(4, 10, dtype=torch.bool)
    start[1:, :4] = True
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        model,
        method="srigl",
        mask={"0": start},
        **{**SETTINGS, "delta_t": 1, "init": {"1": 1.0}},
    )
    model[0].weight.grad = torch.zeros(4, 10)
    optimizer.step()
    assert fan_ins(optimizer.layers[0]).tolist() == [0, 4, 4, 4]
    model[0].weight.grad = torch.zeros(4, 10)
    model[0].weight.grad[0, 6] = -1.0
    optimizer.step()
    assert fan_ins(optimizer.layers[0]).tolist() == [3, 3, 3, 3]
    assert optimizer.masks["0.weight"][0].nonzero().flatten().tolist() == [0, 1, 6]


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_dropped_weights_stay_dropped_with_any_optimizer(name, state):
    model, optimizer, _ = wrapped(SRigL(gamma=HARSH), name, state, alpha=0.6)

    def check(_):
        assert_constant_fan_in(optimizer)
        assert_dropped_are_fresh(optimizer)

    train(model, optimizer, 20, after=check)
    assert sum(ablated(optimizer).values()) > 0


def test_run_is_that_of_a_plain_optimizer_masked_by_hand():
    model, optimizer, reference = wrapped(SRigL(gamma=HARSH), "AdamW", alpha=0.6)
    assert_run_is_that_by_hand("AdamW", model, optimizer, reference, STEPS)


def test_last_layer_keeps_all_its_neurons():
    model, optimizer, _ = wrapped(SRigL(gamma=1.0), alpha=0.9, init="uniform")
    train(model, optimizer, STEPS)
    assert ablated(optimizer)["fc2.weight"] == 0
    assert ablated(optimizer)["fc1.weight"] > 0


class HeadFirst(nn.Module):
    """The output layer is registered before the layers that it reads."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 40)
        self.first = nn.Linear(20, 64)
        self.second = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def ablated_after_training(model, params, method):
    """Return the numbers of ablated neurons after training on a few of the classes."""
    x = torch.randn(256, 20)
    target = x[:, :5].argmax(1)
    optimizer = SparseOptimizer(
        torch.optim.SGD(params, lr=0.1),
        model,
        method=method,
        **{**SETTINGS, "init": {}, "density": 0.1, "alpha": 0.9},
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return ablated(optimizer)


def test_named_output_layers_keep_all_their_neurons_and_others_do_not():
    torch.manual_seed(0)
    model = HeadFirst()
    counts = ablated_after_training(model, model.parameters(), SRigL(1.0, outputs=["head"]))
    assert counts["head.weight"] == 0
    assert counts["first.weight"] > 0
    assert counts["second.weight"] > 0


def test_without_names_the_layer_registered_last_counts_as_the_output_layer():
    torch.manual_seed(0)
    model = HeadFirst()
    counts = ablated_after_training(model, model.parameters(), SRigL(1.0))
    assert counts["second.weight"] == 0
    assert counts["head.weight"] > 0


def test_every_sparse_layer_can_lose_neurons_under_a_dense_head():
    torch.manual_seed(0)
    model = HeadFirst()
    hidden = [*model.first.parameters(), *model.second.parameters()]
    params = [{"params": hidden}, {"params": model.head.parameters(), "density": False}]
    counts = ablated_after_training(model, params, SRigL(1.0, outputs=()))
    assert min(counts.values()) > 0
    assert set(counts) == {"first.weight", "second.weight"}


def test_output_layer_that_the_model_does_not_have_is_refused():
    model = HeadFirst()
    with pytest.raises(ValueError, match="outputs.*'haed'.*head"):
        wrap(model, method=SRigL(outputs=("haed",)), **SETTINGS)


def test_neurons_are_not_ablated_without_gamma():
    model, optimizer, reference = wrapped(SRigL(gamma=None), alpha=0.9)
    run_against_oracle(model, optimizer, reference, STEPS)
    assert set(ablated(optimizer).values()) == {0}


def test_neurons_stay_for_the_budget_to_find_room():
    """If nearly all neurons fall short, as many stay active as the budget needs, with full rows."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))
    settings = {**SETTINGS, "init": {"0": 0.5, "2": 1.0}, "alpha": 1.0, "decay": "constant"}
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), model, method=SRigL(gamma=1.0), **settings
    )
    layer = optimizer.layers[0]
    # All that is salient is in the neurons 1, 4, 5 and 7, and in one weight of neuron 2.
    gradient = torch.zeros(8, 6)
    gradient[[1, 4, 5, 7]] = 1.0
    gradient[1, 0], gradient[2, 3] = 0.0, 1.0
    for _ in range(4):
        model[0].weight.grad = gradient.clone()
        optimizer.step()
    assert fan_ins(layer).tolist() == [0, 6, 0, 0, 6, 6, 0, 6]
    assert layer.live == layer.target == 24


@pytest.mark.parametrize(
    ("columns", "density", "fan_in"), [(20, 0.2, 4), (20, 0.01, 1), (20, 0.22, 4), (20, 0.23, 5)]
)
def test_fan_in_is_the_nearest_to_the_density(columns, density, fan_in):
    model = nn.Sequential(nn.Linear(columns, 3), nn.Linear(3, 2))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters()),
        model,
        method="srigl",
        **{**SETTINGS, "init": {"0": density, "1": 1.0}},
    )
    assert fan_ins(optimizer.layers[0]).tolist() == [fan_in] * 3
    assert optimizer.layers[1].live == 6


def test_magnitude_keeps_the_largest_of_each_neuron():
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -9, 2, 3], [0.1, 0.2, 0.2, 0.2]]))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters()),
        model,
        method="srigl",
        mask="magnitude",
        **{**SETTINGS, "density": 0.5, "init": {}},
    )
    assert optimizer.masks["0.weight"].int().tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]]


def test_masks_of_a_run_with_ablated_neurons_begin_another():
    model, optimizer, _ = wrapped(SRigL(gamma=HARSH), alpha=0.6)
    train(model, optimizer, STEPS)
    ticket = final_masks(optimizer)
    assert ablated(optimizer)["fc1.weight"] > 0
    other = make()
    again = wrap(other, method="srigl", mask=ticket, **SETTINGS)
    assert all(torch.equal(mask, ticket[name]) for name, mask in again.masks.items())
    train(other, again, STEPS)
    assert_constant_fan_in(again)


def test_masks_without_a_constant_fan_in_are_refused():
    model = make()
    mask = torch.zeros(16, 72, dtype=torch.bool)
    mask[:, ::4] = True
    mask[3, 0] = False
    with pytest.raises(ValueError, match=r"fc1\.weight.*structure"):
        wrap(model, method="srigl", mask={"fc1": mask}, **SETTINGS)


def test_neurons_without_any_weight_start_ablated():
    model = make()
    mask = torch.zeros(16, 72, dtype=torch.bool)
    mask[::2, ::4] = True
    optimizer = wrap(model, method="srigl", mask={"fc1": mask}, **SETTINGS)
    assert torch.equal(optimizer.masks["fc1.weight"], mask)


def test_resumed_run_is_the_uninterrupted_one():
    def start():
        model, optimizer, _ = wrapped(SRigL(gamma=HARSH), "AdamW", alpha=0.6)
        return model, optimizer

    model, optimizer = start()
    train(model, optimizer, 18)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved = {
        key: torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, value)
        for key, value in saved.items()
    }
    train(model, optimizer, STEPS - 18, start=18)

    resumed, its_optimizer = start()
    resumed.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    train(resumed, its_optimizer, STEPS - 18, start=18)
    assert its_optimizer.history == optimizer.history
    for mine, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_growth_by_a_smoothed_gradient_goes_by_the_smoothed_one():
    model, optimizer, _ = wrapped(SRigL(gradient=Smoothed(0.9)), "SGD")
    plain_model, plain, _ = wrapped("srigl", "SGD")
    train(model, optimizer, STEPS, after=lambda _: assert_constant_fan_in(optimizer))
    train(plain_model, plain, STEPS)
    name = "fc1.weight"
    assert not torch.equal(optimizer.masks[name], plain.masks[name])


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_growth_by_a_smoothed_gradient_agrees_with_the_oracle(beta):
    model, optimizer, plain = wrapped(SRigL(gradient=Smoothed(beta)), "SGD")
    reference = oracle.grow_by_momentum(plain, beta)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 8


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"gamma": 1.5}, ValueError, "gamma=1.5"),
        ({"gamma": "much"}, TypeError, "gamma='much'"),
        ({"outputs": "head"}, TypeError, r"outputs='head'.*\('head',\)"),
        ({"regrow": "never"}, ValueError, "never"),
        ({"gradient": "random"}, TypeError, "gradient='random'"),
    ],
)
def test_wrong_arguments_raise_an_error(settings, error, words):
    with pytest.raises(error, match=words):
        SRigL(**settings)
