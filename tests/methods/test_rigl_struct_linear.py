"""`rigl-struct` on hidden neurons and heads: exact updates, by name, with shares by kind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer
from tests.support.attention_nets import GATED_OWNED, TOKENS, TRANSFORMERS, GatedNet
from tests.support.catalogue import build
from tests.support.channel_nets import INPUT, ChannelNet
from tests.support.channel_runs import SETTINGS, STEPS, oracle_of, run_against_oracle
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import make
from tests.support.training import train

HALF = {"q.weight": 2, "gate.weight": 6}


def wrapped(name="SGD", state="auto", *, regrow=None, device="cpu", **changes):
    model = make(GatedNet, device=device)
    optimizer = SparseOptimizer(
        build(name, model.parameters()),
        model,
        example_inputs=TOKENS.to(device),
        regrow=regrow,
        state=state,
        **{"method": "rigl-struct", **SETTINGS, "density": 0.5, "init": {}, **changes},
    )
    return model, optimizer


def live_counts(optimizer):
    masks = optimizer.masks
    return {"q.weight": int(masks["q.weight"].any(1).sum()) // 2} | {
        "gate.weight": int(masks["gate.weight"].any(1).sum())
    }


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, state, device):
    model, optimizer = wrapped(name, state, device=device)
    reference = oracle_of(model, HALF, owned=GATED_OWNED)
    run_against_oracle(model, optimizer, reference)
    assert len(optimizer.history) == 14
    assert max(record.new for record in optimizer.history) > 0


def test_regrow_never_agrees_with_the_oracle():
    model, optimizer = wrapped("AdamW", regrow="never")
    reference = oracle_of(model, HALF, owned=GATED_OWNED, regrow="never")
    run_against_oracle(model, optimizer, reference)


def test_neurons_ever_live_grow_and_counts_stay():
    model, optimizer = wrapped()

    def check(_):
        assert_dropped_are_fresh(optimizer)
        assert live_counts(optimizer) == HALF

    train(model, optimizer, STEPS, after=check)
    explored = [record.explored for record in optimizer.history]
    assert explored == sorted(explored)
    assert explored[-1] > explored[0]
    ever = {layer.name: layer.ever_live / layer.numel for layer in optimizer.layers}
    assert ever["gate.weight"] > 0.5


def test_shares_by_kind_are_met_whatever_the_density():
    method = RigLStruct(kinds={"neuron": 0.25, "head": 0.75})
    _, optimizer = wrapped(method=method, density=0.1)
    assert live_counts(optimizer) == {"q.weight": 3, "gate.weight": 3}


def test_kinds_that_are_not_named_stay():
    _, optimizer = wrapped(method=RigLStruct(kinds=("neuron",)))
    assert live_counts(optimizer) == {"q.weight": 4, "gate.weight": 6}
    counted = [layer for layer in optimizer.layers if layer.name in {"gate.weight", "down.weight"}]
    assert sum(layer.live for layer in counted) == 0.5 * sum(layer.numel for layer in counted)


def test_kind_that_cannot_move_gives_a_warning_with_the_reasons():
    class Ranked(nn.Module):
        """Attention whose heads are sorted, so that none of them can be dropped."""

        def __init__(self):
            super().__init__()
            self.query, self.up, self.down = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            heads = self.query(x).unflatten(-1, (4, 2)).sort(-2).values.transpose(1, 2)
            x = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
            return self.down(self.up(x).relu())

    model = Ranked()
    with pytest.warns(UserWarning, match=r"no head of this model .*query\.weight: sort"):
        optimizer = SparseOptimizer(
            build("SGD", model.parameters()),
            model,
            method=RigLStruct(kinds={"neuron": 0.5, "head": 0.5}),
            example_inputs=torch.randn(2, 5, 8),
            **SETTINGS,
        )
    assert optimizer.masks["up.weight"].any(1).sum() == 4
    assert "query.weight" not in optimizer.masks or optimizer.masks["query.weight"].all()


def test_density_counts_the_layers_that_heads_and_neurons_own_a_part_of():
    _, optimizer = wrapped(density=0.5, init="erk")
    names = {name for owned in GATED_OWNED.values() for name in (*owned.makers, *owned.readers)}
    layers = [layer for layer in optimizer.layers if layer.name in names]
    live, total = (sum(getattr(layer, what) for layer in layers) for what in ("live", "numel"))
    assert 0.4 < live / total <= 0.5


def test_neurons_stay_unless_named_where_channels_of_convolutions_move():
    def optimizer_of(method):
        model = make(ChannelNet)
        return SparseOptimizer(
            build("SGD", model.parameters()),
            model,
            method=method,
            example_inputs=INPUT,
            density=0.25,
            init={},
            total_steps=20,
            delta_t=2,
        )

    masks = optimizer_of("rigl-struct").masks
    assert masks["fc2.weight"].all()
    named = optimizer_of(RigLStruct(kinds=("channel", "neuron"))).masks
    assert int(named["fc2.weight"].any(0).sum()) == 3
    assert int(named["c1.weight"].flatten(1).any(1).sum()) == 3


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_transformer_is_trained_by_name(name):
    if name in {"gpt2", "llama", "bert"}:
        pytest.importorskip("transformers")
    case = TRANSFORMERS[name]
    model = case.build()
    optimizer = SparseOptimizer(
        build("AdamW", model.parameters()),
        model,
        method="rigl-struct",
        example_inputs=case.kwargs or case.args,
        density=0.5,
        total_steps=30,
        delta_t=2,
        alpha=0.6,
        seed=1,
    )
    for step in range(16):
        optimizer.zero_grad()
        output = case.run(model)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(step))
        (output - target).square().mean().backward()
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    explored = [record.explored for record in optimizer.history]
    assert explored[-1] > explored[0]
    assert all(layer.live == layer.target for layer in optimizer.layers)


def test_copy_trains_on_as_the_original_does():
    model, optimizer = wrapped("AdamW")
    train(model, optimizer, 7)
    other_model, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 14, start=7)
    train(other_model, other, 14, start=7)
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("kinds", "error", "words"),
    [
        (("neurons",), ValueError, "neuron"),
        ("neuron", TypeError, "several names"),
        ({"neuron": 1.5}, ValueError, r"kinds\['neuron'\]=1\.5"),
    ],
)
def test_wrong_kinds_are_refused(kinds, error, words):
    with pytest.raises(error, match=words):
        RigLStruct(kinds=kinds)
