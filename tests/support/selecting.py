"""A language model and a layer whose weights have to be selected, and their training."""

import torch
from torch import nn

LSTM_LAYERS = ["embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


class LanguageModel(nn.Module):
    def __init__(self, cell=nn.LSTM):
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.lstm = cell(12, 20, batch_first=True)
        self.head = nn.Linear(20, 40)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0])


class OwnLinear(nn.Module):
    """A linear map as graph libraries write their own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.kernel + self.bias


def lm_loss(model):
    tokens = torch.randint(0, 40, (4, 9))
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def train(optimizer, loss, steps=7):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
