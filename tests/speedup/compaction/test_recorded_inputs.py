"""The smaller model is right if it was checked on the recorded input of the first training step."""

import math

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
