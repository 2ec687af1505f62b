"""Heads and gated pairs, of neurons or channels, cut out of transformers and other models."""

import copy
import io

import pytest
import torch
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, compact, count_flops
from sparseopt.speedup.compaction.fewer_heads import FewerHeads
from tests.support.attention_nets import TRANSFORMERS, CausalTransformer, Transformer


def halved(model, example_inputs):
    """An optimizer whose masks drop half of the heads and neurons."""
    return SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="rigl-struct",
        example_inputs=example_inputs,
        density=0.5,
        init={},
        total_steps=10,
        delta_t=2,
        seed=1,
    )


def cut(case):
    """A model whose masks drop half of the heads and neurons, its optimizer and compaction."""
    model = case.build()
    optimizer = halved(model, case.kwargs or case.args)
    return model, optimizer, compact(model, optimizer, example_inputs=(case.args, case.kwargs))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_dropped_parts_are_all_cut_and_the_rest_computes_the_same(name):
    if name in {"gpt2", "llama", "bert"}:
        pytest.importorskip("transformers")
    case = TRANSFORMERS[name]
    model, optimizer, compacted = cut(case)
    assert compacted.report.share_reached == 1.0
    assert not compacted.report.remaining
    for mode in (True, False):
        expected, found = (case.run(one.train(mode)) for one in (model, compacted.model))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    inputs = (case.args, case.kwargs)
    counted = optimizer.flops(model, inputs).inference_sparse
    assert counted == count_flops(compacted.model, inputs).inference_dense


@pytest.mark.parametrize("name", ["own, split", "encoder", "vit"])
def test_smaller_model_is_copied_saved_and_exported(name):
    case = TRANSFORMERS[name]
    smaller = cut(case)[2].model.eval()
    expected = case.run(smaller)
    buffer = io.BytesIO()
    torch.save(smaller, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(smaller),
        torch.load(buffer, weights_only=False),
        torch.export.export(smaller, case.args).module(),
    ):
        torch.testing.assert_close(case.run(other), expected)


class Attending(nn.Module):
    """Attention of torch, called with all combinations of arguments."""

    def __init__(self, batch_first=True, separate=False):
        super().__init__()
        widths = {"kdim": 6, "vdim": 6} if separate else {}
        self.attention = nn.MultiheadAttention(8, 4, batch_first=batch_first, **widths)
        self.last = nn.Linear(8, 3)
        self.how = {"need_weights": False}

    def forward(self, x, y):
        outputs, weights = self.attention(x, y, y, **self.how)
        return self.last(outputs), weights


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_compacted_attention_of_torch_accepts_the_same_arguments(batch_first, separate):
    model = Attending(batch_first, separate)
    x, y = torch.randn(5, 4, 8), torch.randn(5, 4, 6 if separate else 8)
    optimizer = halved(model, (x, y))
    smaller = compact(model, optimizer, example_inputs=(x, y)).model
    assert type(smaller.attention) is FewerHeads
    assert smaller.attention.num_heads == 2
    shape = (5, 4) if batch_first else (4, 5)
    padding = torch.zeros(shape, dtype=torch.bool)
    padding[:, -1] = True
    tokens = shape[1]
    places = torch.ones(tokens, tokens).tril() == 0
    for how in (
        {"need_weights": False},
        {"need_weights": False, "attn_mask": places},
        {"need_weights": False, "key_padding_mask": padding},
        {"need_weights": False, "attn_mask": places, "key_padding_mask": padding},
        {"need_weights": False, "attn_mask": places, "is_causal": True},
        # torch reads the hint and not the mask, so a mask that is not causal shows who reads it.
        {"need_weights": False, "attn_mask": torch.zeros(tokens, tokens), "is_causal": True},
        {
            "need_weights": False,
            "attn_mask": torch.zeros(tokens, tokens),
            "key_padding_mask": padding.float(),
            "is_causal": True,
        },
        {"need_weights": True, "average_attn_weights": False, "key_padding_mask": padding},
    ):
        model.how = smaller.how = how
        expected, found = model(x, y), smaller(x, y)
        torch.testing.assert_close(found[0], expected[0])
        if expected[1] is not None:
            kept = optimizer.masks["attention.out_proj.weight"].any(0).view(4, 2).any(1)
            torch.testing.assert_close(found[1], expected[1][:, kept])
    model.how = smaller.how = {"need_weights": False}
    torch.testing.assert_close(smaller(x[0], y[0])[0], model(x[0], y[0])[0])


class Stubborn(nn.Module):
    """Attention whose code computes the width of a head from the width of the residual stream."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.proj = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        samples, tokens, width = x.shape
        q, k, v = (
            part.view(samples, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm(x)).split(width, dim=2)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.proj(y.reshape(samples, tokens, width)))


def test_heads_stay_and_are_reported_if_the_code_has_their_number():
    case = Transformer(Stubborn, 1, 4, 0, (torch.randn(2, 5, 6),))
    model, _, compacted = cut(case)
    torch.testing.assert_close(case.run(compacted.model), case.run(model))
    assert compacted.model.qkv.out_features == 24
    reasons = {one.reason for one in compacted.report.remaining}
    assert any("the code of Stubborn" in one and "shape" in one for one in reasons)


class GatedConvolution(nn.Module):
    """Splits the channels of a convolution into two halves, and multiplies them."""

    def __init__(self):
        super().__init__()
        self.inner = 16
        self.both, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 5, 1)

    def halves(self, x):
        return x.split([self.inner, self.inner], dim=1)

    def forward(self, x):
        values, gates = self.halves(self.both(x))
        return self.last(values * gates.sigmoid())


class OfSixteenChannels(GatedConvolution):
    def halves(self, x):
        return x.split([16, 16], dim=1)


def test_gated_pairs_of_channels_go():
    model, x, other = GatedConvolution(), torch.randn(2, 3, 8, 8), torch.randn(3, 3, 5, 7)
    optimizer = halved(model, x)
    smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.both.out_channels == 2 * smaller.last.in_channels < 32
    expected = model(other).detach()
    torch.testing.assert_close(smaller(other), expected)
    with CompactedTraining(model, optimizer, example_inputs=x):
        assert model.both.out_channels == smaller.both.out_channels
        torch.testing.assert_close(model(other), expected)
    assert (model.both.out_channels, model.inner) == (32, 16)


def test_gated_pairs_of_channels_stay_and_are_reported_if_the_code_has_their_number():
    model, x = OfSixteenChannels(), torch.randn(2, 3, 8, 8)
    compacted = compact(model, halved(model, x), example_inputs=x)
    torch.testing.assert_close(compacted.model(x), model(x))
    assert compacted.model.both.out_channels == 32
    reasons = {one.reason for one in compacted.report.remaining}
    assert any("the code of OfSixteenChannels does not work with fewer" in one for one in reasons)


class OfLastTokens(nn.Module):
    """Attention over the last 32 tokens, with 32 as the width of all heads too."""

    def __init__(self):
        super().__init__()
        self.heads, self.inner, self.most_tokens = 4, 32, 32
        self.qkv, self.proj = nn.Linear(6, 96), nn.Linear(32, 3)

    def forward(self, x):
        x = x[:, -self.most_tokens :]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).split(self.inner, dim=-1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def test_attribute_that_only_looks_like_a_width_keeps_its_value():
    model = OfLastTokens()
    x, longer = torch.randn(2, 10, 6), torch.randn(2, 40, 6)
    optimizer = halved(model, x)
    smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.qkv.out_features == 48
    torch.testing.assert_close(smaller(longer), model(longer))
    expected = model(longer).detach()
    with CompactedTraining(model, optimizer, example_inputs=x):
        assert model.qkv.out_features == 48
        torch.testing.assert_close(model(longer), expected)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@torch.no_grad()
def test_encoder_with_fewer_heads_takes_padding_in_evaluation():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 8, 64, batch_first=True, dropout=0.0)
            self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(32, 4)

        def forward(self, x, padding=None):
            return self.last(self.encoder(x, src_key_padding_mask=padding))

    model, x = Encoder(), torch.randn(3, 5, 32)
    with torch.enable_grad():
        optimizer = SparseOptimizer(
            torch.optim.SGD(model.parameters()),
            model,
            method=RigLStruct(kinds={"head": 0.5, "neuron": 0.5}),
            example_inputs=x,
            total_steps=1000,
        )
        smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.encoder.layers[0].self_attn.num_heads < 8
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    expected, found = model.eval()(x, padding), smaller.eval()(x, padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-4, atol=1e-5)


def test_attention_to_another_sequence_loses_heads_too():
    model, inputs = CausalTransformer(), (torch.randn(2, 7, 16), torch.randn(2, 5, 16))
    optimizer = halved(model, inputs)
    smaller = compact(model, optimizer, example_inputs=inputs).model
    (decoder,) = smaller.transformer.decoder.layers
    assert [decoder.self_attn.num_heads, decoder.multihead_attn.num_heads] == [2, 2]
    assert decoder.linear1.out_features == 12
    longer = torch.randn(2, 9, 16), torch.randn(2, 6, 16)
    torch.testing.assert_close(smaller(*longer), model(*longer))


class Masked(nn.Module):
    """A gated block whose tokens are mixed by a matrix, which has no batch."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, mixing):
        return self.down((mixing @ self.up(x)).relu())


def test_recorded_inputs_that_are_no_batch_are_used_as_they_are():
    model, x, mixing = Masked(), torch.randn(12, 10, 8), torch.rand(10, 10)
    optimizer = halved(model, (x, mixing))
    model(x, mixing).square().mean().backward()
    optimizer.step()
    smaller = compact(model, optimizer).model
    assert smaller.up.out_features == 8
    torch.testing.assert_close(smaller(x, mixing), model(x, mixing))


class Sized(Masked):
    """It returns a size that is smaller in the smaller model."""

    def forward(self, x, mixing):
        hidden = self.up(x)
        return self.down((mixing @ hidden).relu()), hidden.shape[-1]


def test_sizes_among_the_outputs_may_shrink():
    model, x, mixing = Sized(), torch.randn(12, 10, 8), torch.rand(10, 10)
    with torch.no_grad():
        model.up.weight[:4] = 0
        model.up.bias[:4] = 0
    smaller = compact(model, "nonzero", example_inputs=(x, mixing)).model
    found, size = smaller(x, mixing)
    assert size == 12
    torch.testing.assert_close(found, model(x, mixing)[0])
