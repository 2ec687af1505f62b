"""Small models and data on which every run takes milliseconds."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.seeding import seed_torch

CLASSES = 5
SPARSE_NAMES = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


class SmallNet(nn.Module):
    """Two convolutions, a normalisation, two linear layers: one layer of every usual kind."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(8 * 3 * 3, 16)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class MatrixNet(nn.Module):
    """Linear layers without biases, for optimizers that take matrices only (Muon)."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(108, 16, bias=False)
        self.fc2 = nn.Linear(16, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def make(
    kind: type[nn.Module] = SmallNet,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> nn.Module:
    """The same model for the same seed, independent of random numbers that were drawn before."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)
        model = kind()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device=device, dtype=dtype, memory_format=layout)


def batch(
    index: int,
    *,
    size: int = 8,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch number `index`: coarse values, so that bf16 gradients tie."""
    generator = torch.Generator().manual_seed(1000 + index)
    x = torch.randint(-2, 3, (size, 3, 6, 6), generator=generator) / 2
    y = torch.randint(0, CLASSES, (size,), generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.to(device=device, dtype=dtype).contiguous(memory_format=layout), y.to(device)


def loss_of(model: nn.Module, index: int, *, size: int = 8) -> torch.Tensor:
    """Cross entropy on batch `index`, in the model's own dtype, device and memory format."""
    weight = next(model.parameters())
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    x, y = batch(
        index, size=size, device=weight.device, dtype=weight.dtype, channels_last=channels_last
    )
    return F.cross_entropy(model(x).float(), y)
