"""The smaller model is right if it was checked on the recorded input of the first training step."""

import math

import pytest
import torch
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, compact


class MaskedAttention(nn.Module):
    """Attention with eight heads of eight: two attributes have the same value."""

    def __init__(self):
        super().__init__()
        self.h, self.d_k = 8, 8
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        with torch.no_grad():
            self.q.weight *= 3
            self.k.weight *= 3

    def forward(self, x, mask):
        samples, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(samples, tokens, self.h, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-2, -1) / math.sqrt(self.d_k)).masked_fill(mask == 0, -1e9)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def after_one_step(model, inputs, kinds):
    """An optimizer whose masks drop half of each kind of channels, after one step of training."""
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        model,
        method=RigLStruct(kinds=dict.fromkeys(kinds, 0.5)),
        example_inputs=inputs,
        total_steps=100,
        delta_t=20,
    )
    model(*inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def masked_attention():
    torch.manual_seed(0)
    x, mask = torch.randn(4, 10, 64), torch.ones(4, 1, 1, 10, dtype=torch.long)
    model = MaskedAttention()
    return model, (x, mask), after_one_step(model, (x, mask), ["head"])


def test_smaller_model_is_compared_where_an_integer_mask_shows_something():
    model, inputs, optimizer = masked_attention()
    smaller = compact(model, optimizer).model
    torch.testing.assert_close(smaller(*inputs), model(*inputs))
    assert smaller.q.out_features == 32


def test_training_with_recorded_inputs_computes_the_same_under_an_integer_mask():
    model, inputs, optimizer = masked_attention()
    expected = model(*inputs).detach()
    with CompactedTraining(model, optimizer):
        assert model.q.out_features == 32
        torch.testing.assert_close(model(*inputs), expected)


class Encoder(nn.Module):
    """An encoder of torch, which takes a mask and the hint that the mask is causal."""

    def __init__(self, batch_first, is_causal):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.last, self.is_causal = nn.Linear(16, 3), is_causal

    def forward(self, x, mask):
        return self.last(self.encoder(x, mask=mask, is_causal=self.is_causal))


def assert_heads_are_cut(model, inputs, optimizer, example_inputs):
    """Half of the four heads go, and the rest computes the same on real inputs."""
    expected = model(*inputs).detach()
    smaller = compact(model, optimizer, example_inputs=example_inputs).model
    assert smaller.encoder.layers[0].self_attn.num_heads == 2
    torch.testing.assert_close(smaller(*inputs), expected)
    with CompactedTraining(model, optimizer, example_inputs=example_inputs):
        assert model.encoder.layers[0].self_attn.num_heads == 2
        torch.testing.assert_close(model(*inputs), expected)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
def test_heads_go_from_an_encoder_with_a_mask_of_infinite_numbers(is_given, is_causal):
    model, x = Encoder(True, is_causal), torch.randn(12, 8, 16)
    inputs = (x, nn.Transformer.generate_square_subsequent_mask(8))
    optimizer = after_one_step(model, inputs, ["head"])
    assert_heads_are_cut(model, inputs, optimizer, inputs if is_given else None)


@pytest.mark.parametrize(
    ("batch_first", "shape"), [(True, (16, 16, 16)), (False, (16, 6, 16)), (False, (16, 16, 16))]
)
def test_mask_as_long_as_the_batch_is_replayed_in_full(batch_first, shape):
    model, inputs = Encoder(batch_first, True), (torch.randn(shape), torch.zeros(16, 16))
    optimizer = after_one_step(model, inputs, ["head"])
    assert_heads_are_cut(model, inputs, optimizer, None)


def test_input_that_autocast_casts_is_replayed_in_the_precision_of_the_model():
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(6, 16)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="rigl-struct", density=0.5,
        example_inputs=x, total_steps=100, delta_t=20,
    )  # fmt: skip
    with torch.no_grad():  # Inputs are recorded only where gradients are.
        expected = model(x)
    with CompactedTraining(model, optimizer):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x.bfloat16()).sum().backward()
        optimizer.zero_grad()
        optimizer.step()
        assert model[0].out_features == 4
        torch.testing.assert_close(model(x), expected)


class OfPositive(nn.Module):
    """It refuses negative numbers."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        if not torch.compiler.is_exporting() and bool((x < 0).any()):
            raise ArithmeticError("a number is negative")
        return self.down(self.up(x).relu())


def test_model_that_refuses_random_numbers_needs_inputs():
    model, x = OfPositive(), torch.rand(6, 8)
    optimizer = after_one_step(model, (x,), ["neuron"])
    with pytest.raises(ValueError, match="pass example_inputs= .* a number is negative"):
        compact(model, optimizer)
    with pytest.raises(ValueError, match="pass example_inputs= .* a number is negative"):
        CompactedTraining(model, optimizer)
    expected = model(x).detach()
    with CompactedTraining(model, optimizer, example_inputs=x):
        assert model.up.out_features == 8
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("keywords", [{}, {"use_cache": True}])
def test_language_model_that_returns_a_cache_is_made_smaller(keywords):
    transformers = pytest.importorskip("transformers")
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=4, vocab_size=19, n_positions=16, bos_token_id=0,
        eos_token_id=0, **none,
    )  # fmt: skip
    model, words = transformers.GPT2LMHeadModel(config), torch.arange(24).view(2, 12) % 19
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="rigl-struct", density=0.5,
        init={}, example_inputs=(words,), total_steps=100, delta_t=20,
    )  # fmt: skip
    model(words, **keywords).logits.square().mean().backward()
    optimizer.zero_grad()
    optimizer.step()
    expected = model(words).logits.detach()
    smaller = compact(model, optimizer).model
    assert smaller.transformer.h[0].attn.c_attn.nf == 24
    torch.testing.assert_close(smaller(words).logits, expected)
    with CompactedTraining(model, optimizer):
        assert model.transformer.h[0].attn.c_attn.nf == 24
        torch.testing.assert_close(model(words).logits, expected)
    assert model(words).past_key_values is not None
