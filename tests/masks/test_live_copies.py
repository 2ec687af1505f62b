"""Kernels and torch copy live entries with equal bits."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import sparseopt
from sparseopt.masks import live_copies
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.live_copies import word_bits
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build
from sparseopt.speedup.kernels.live_copies import find_live_copies
from tests.support.processes import finish, start

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no kernels here")

#: Sizes at which kernels are called. The last word of bits is full, almost full, or almost empty.
SHAPES = ((64, 80), (5000,), (4097, 1), (3, 7, 11, 19))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DENSITIES = (0.0003, 0.02, 0.1, 0.5, 0.97)


class Counting:
    """The kernels' copies, and how often each was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        copy = getattr(find_live_copies(), name)

        def call(*arguments):
            self.calls.append(name)
            copy(*arguments)

        return call


@pytest.fixture
def counting(monkeypatch):
    copies = Counting()
    monkeypatch.setattr(live_copies, "_find", [lambda: copies])
    return copies


def random_mask(shape: tuple[int, ...], density: float) -> Tensor:
    generator = torch.Generator().manual_seed(hash((shape, density)) % 2**31)
    mask = torch.rand(shape, generator=generator) < density
    # First and last entries are where copies would go wrong.
    mask.view(-1)[[0, -1]] = True
    return mask


def odd_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers with NaN, -0.0, infinity and a denormal number among them."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(shape, generator=generator).to(dtype)
    values.view(-1)[::5] = -0.0
    values.view(-1)[::7] = math.inf
    values.view(-1)[::11] = torch.finfo(dtype).smallest_normal / 2
    if dtype.itemsize > 2:
        # With a payload. Torch changes it as it scatters 16 bits.
        values.view(-1).view({4: torch.int32, 8: torch.int64}[dtype.itemsize])[::13] = -3
    return values


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def layer_of(values: Tensor, mask: Tensor) -> SparseLayer:
    weight = nn.Parameter(values.clone())
    return SparseLayer("weight", weight, mask, int(mask.sum()))


def results(values: Tensor, mask: Tensor) -> list[Tensor]:
    """The results of every method of a layer that copies entries."""
    layer = layer_of(values, mask)
    gradient = values.flip(0).contiguous()
    gathered = layer.gather(layer.weight)
    two = [torch.full_like(gathered, 7.0) for _ in range(2)]
    layer._gather_two(layer.weight, gradient, *two)
    scattered = gradient.clone()
    layer._scatter_(scattered, gathered)
    kept = gradient.clone()
    layer._mask_(kept)
    layer._clear_dropped_()
    replaced = []
    for step in range(2):
        layer._replace_(two[step])
        replaced.append(layer.weight.detach().clone())
    return [gathered, *two, scattered, kept, *replaced]


@needs_kernels
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_copy_what_torch_copies(shape, dtype, density, monkeypatch, counting):
    values, mask = odd_values(shape, dtype), random_mask(shape, density)
    by_kernels = results(values, mask)
    assert {"gather", "write", "keep"} == set(counting.calls)
    monkeypatch.setattr(live_copies, "_find", [])
    by_torch = results(values, mask)
    assert all(map(same_bits, by_kernels, by_torch))
    # Whatever both have in common, an index of all live entries has not.
    assert same_bits(by_kernels[0], values[mask])


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_write_their_own_entries_only(threads):
    size = 1_000_003  # enough for five threads
    mask = random_mask((size,), 0.1)
    # Few live entries in the middle, where one thread ends and the next begins.
    mask[size // 3 : 2 * size // 3] = False
    mask[size // 2] = True
    values, bits = odd_values((size,), torch.float32), word_bits(mask)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        copies = find_live_copies()
        around = torch.full((int(mask.sum()) + 2,), 7.0)
        copies.gather(bits, values, around[1:-1])
        written = torch.full((size,), 7.0)
        copies.write(bits, around[1:-1], written)
        copies.keep(bits, values)
    finally:
        torch.set_num_threads(before)
    assert around[0] == around[-1] == 7.0
    assert same_bits(around[1:-1], values[mask])
    assert same_bits(written, values)


@needs_kernels
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_kernels_read_and_write_nothing_past_the_end_of_a_tensor(threads):
    finish([start("tests.masks.page_end_worker", threads)])


@needs_kernels
def test_autograd_notices_what_kernels_write(counting):
    layer = layer_of(torch.randn(100, 100), random_mask((100, 100), 0.1))
    layer._clear_dropped_()
    loss = layer.weight.square().sum()
    layer._replace_(torch.ones(layer.live))
    assert counting.calls[-1] == "write"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_kernels
@pytest.mark.parametrize("inner", ["SGD", "AdamW"])
def test_training_is_the_same_with_kernels_and_without(inner, monkeypatch, counting):
    def train() -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 64, 5),
            nn.Conv2d(64, 32, 3).to(memory_format=torch.channels_last),
            nn.Flatten(),
            nn.Linear(128, 60),
        )
        optimizer = sparseopt.SparseOptimizer(
            getattr(torch.optim, inner)(model.parameters(), lr=0.01),
            model,
            density=0.4,
            delta_t=3,
            total_steps=20,
            seed=0,
        )
        for _ in range(8):
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    by_kernels = train()
    assert counting.calls
    monkeypatch.setattr(live_copies, "_find", [])
    assert all(map(same_bits, by_kernels, train()))


STEP = """
import torch
from sparseopt import SparseOptimizer
from sparseopt.speedup.kernels.live_copies import find_live_copies
model = torch.nn.Linear(100, 100)
optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, density=0.1)
model(torch.randn(2, 100)).sum().backward()
optimizer.step()
print(find_live_copies() is not None)
"""


@needs_kernels
def test_step_compiles_nothing_and_uses_what_was_compiled(tmp_path):
    def step(**environment: str) -> str:
        environment = {"SPARSEOPT_CACHE": str(tmp_path), **environment}
        command = [sys.executable, "-c", STEP]
        ran = subprocess.run(
            command,
            env=os.environ | {"SPARSEOPT_KERNELS": ""} | environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return ran.stdout.strip()

    prebuilt = build.prebuilt_path(kernels.variant()).exists()
    assert step() == str(prebuilt)
    assert not list(tmp_path.iterdir())
    ask = "from sparseopt.speedup import kernels; assert kernels.available()"
    environment = os.environ | {"SPARSEOPT_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ask], env=environment, check=True)
    assert step() == "True"
    assert step(SPARSEOPT_KERNELS="0") == "False"
