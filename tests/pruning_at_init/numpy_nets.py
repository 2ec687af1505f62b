"""Networks of two linear layers in NumPy: scores from derivatives written out by hand."""

import numpy as np
import torch
from torch import nn

SIZES = (6, 9, 4)


class TanhNet(nn.Module):
    """Two linear layers without biases, float64."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first = nn.Linear(SIZES[0], SIZES[1], bias=False, dtype=torch.float64)
            self.second = nn.Linear(SIZES[1], SIZES[2], bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def squared_error(outputs, targets):
    return 0.5 * (outputs - targets).square().sum() / len(targets)


def batch(seed, size=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, SIZES[0])), rng.normal(size=(size, SIZES[2]))


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def weights_of(net):
    return [net.first.weight.detach().numpy(), net.second.weight.detach().numpy()]


def gradient(weights, x, t, temperature=1.0):
    """The gradient of `squared_error` of the outputs over the temperature."""
    first, second = weights
    h = np.tanh(x @ first.T)
    d_out = (h @ second.T / temperature - t) / len(t) / temperature
    d_hidden = d_out @ second * (1 - h**2)
    return [d_hidden.T @ x, d_out.T @ h]


def hessian_product(weights, direction, x, t, temperature=1.0):
    """The derivative of `gradient` along `direction` (Pearlmutter's R operator)."""
    (first, second), (v1, v2) = weights, direction
    h = np.tanh(x @ first.T)
    slope = 1 - h**2
    r_h = slope * (x @ v1.T)
    d_out = (h @ second.T / temperature - t) / len(t) / temperature
    r_out = (r_h @ second.T + h @ v2.T) / temperature**2 / len(t)
    d_h = d_out @ second
    r_d_h = r_out @ second + d_out @ v2
    r_hidden = r_d_h * slope - 2 * d_h * h * r_h
    return [r_hidden.T @ x, r_out.T @ h + d_out.T @ r_h]


def keep_highest(scores, live, among=None):
    """Masks of the `live` highest scores; every layer keeps its highest; ties go by position."""
    among = among or [np.ones(score.shape, dtype=bool) for score in scores]
    ranked = []
    for score, allowed in zip(scores, among, strict=True):
        flat = np.where(allowed, score, -np.inf).ravel()
        flat[np.argmax(flat)] = np.inf
        ranked.append(flat)
    order = np.argsort(-np.concatenate(ranked), kind="stable")[:live]
    chosen = np.zeros(sum(score.size for score in scores), dtype=bool)
    chosen[order] = True
    parts = np.split(chosen, np.cumsum([score.size for score in scores])[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def assert_masks(masks, expected):
    assert list(masks) == ["first.weight", "second.weight"]
    for mask, want in zip(masks.values(), expected, strict=True):
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), want)
