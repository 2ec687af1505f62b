"""How closely two runs can agree, given torch's arithmetic.

Torch works through a tensor in vectors and does what is left over one by one. In some kernels (the
fused ones, and bf16 additions with a factor) the two round differently, so that a weight's new
value depends on where it lies. Live state moves weights to other places; there the last bit
cannot be promised, by anyone.
"""

from functools import cache
from typing import Any

import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import logical, per_weight_state


def place_does_not_matter(name: str, options: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether torch's optimizer treats a weight alike at every position of a tensor."""
    return _place_does_not_matter(name, tuple(sorted(options.items())), dtype)


@cache
def _place_does_not_matter(name: str, options: tuple, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(200, generator=generator).to(dtype)
    gradients = [torch.randn(200, generator=generator).to(dtype) for _ in range(4)]
    everywhere = _stepped(name, dict(options), start, gradients)
    for size in (1, 3, 7, 15, 29, 61, 107):
        places = torch.randperm(200, generator=generator)[:size].sort().values
        alone = _stepped(name, dict(options), start[places], [g[places] for g in gradients])
        if not torch.equal(alone, everywhere[places]):
            return False
    return True


def _stepped(
    name: str, options: dict[str, Any], start: torch.Tensor, gradients: list[torch.Tensor]
) -> torch.Tensor:
    weight = start.clone().requires_grad_()
    optimizer = build(name, [weight], **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


class PlainTwin:
    """A plain optimizer in exactly the situation of a sparse one, for a single step.

    Made just before a step: copies of the weights, of their gradients and of the state, all of
    them dense. `step()` steps it; `assert_close()` compares what the sparse one made of it.
    """

    def __init__(self, name: str, options: dict[str, Any], optimizer: SparseOptimizer):
        self.source = optimizer
        masks = {layer.weight: layer.mask for layer in optimizer.layers}
        self.pairs = [
            (p, _copy(p), masks.get(p)) for group in optimizer.param_groups for p in group["params"]
        ]
        self.plain = build(name, [copy for _, copy, _ in self.pairs], **options)
        for original, copy, mask in self.pairs:
            self._copy_state(original, copy, mask)

    def _copy_state(
        self, original: torch.Tensor, copy: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        dense = per_weight_state(self.source, original, mask)
        for key, value in self.source.state.get(original, {}).items():
            if key in dense:
                wide = torch.from_numpy(dense[key]).reshape(copy.shape)
                self.plain.state[copy][key] = torch.empty_like(copy.detach()).copy_(wide)
            else:
                self.plain.state[copy][key] = value.clone() if torch.is_tensor(value) else value

    def step(self) -> None:
        self.before = {copy: logical(copy) for _, copy, _ in self.pairs}
        self.plain.step()

    def assert_close(self, ulps: float = 2.0) -> None:
        """Every live weight is within `ulps` of the result of the plain step."""
        for original, copy, mask in self.pairs:
            mine, plain, old = logical(original), logical(copy), self.before[copy]
            allowed = ulps * torch.finfo(copy.dtype).eps * abs(old).clip(min=abs(plain))
            off = abs(mine - plain) > allowed
            if mask is not None:
                off &= logical(mask)
            assert not off.any(), f"off by {abs(mine - plain)[off].max()}"


def _copy(parameter: torch.Tensor) -> torch.Tensor:
    copy = parameter.detach().clone().requires_grad_()
    if parameter.grad is not None:
        copy.grad = parameter.grad.detach().clone()
    return copy
