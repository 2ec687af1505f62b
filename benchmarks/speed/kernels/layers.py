"""The measured layers: all shapes of some networks, at the usual batch sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet50

from benchmarks.cifar.models import WideResNet
from benchmarks.speed.models import cifar_resnet50


@dataclass(frozen=True)
class Layer:
    """One shape of layer, and the shape of its input.

    Attributes:
        inputs: Channels, or features, of the input.
        outputs: Channels, or features, of the output.
        batch: Samples, or tokens.
        size: Height and width of the map of a convolution; 0 for a linear layer.
        kernel: Height and width of the kernel.
        stride: The stride of the convolution.
    """

    inputs: int
    outputs: int
    batch: int
    size: int = 0
    kernel: int = 1
    stride: int = 1

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer."""
        return self.size == 0

    @property
    def padding(self) -> int:
        """Zeros on each side; kernels of all these networks are odd and keep the size."""
        return self.kernel // 2

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        taps = () if self.is_linear else (self.kernel, self.kernel)
        return (self.outputs, self.inputs, *taps)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the input."""
        maps = () if self.is_linear else (self.size, self.size)
        return (self.batch, self.inputs, *maps)

    @property
    def weights(self) -> int:
        """Weights of the dense layer."""
        return self.outputs * self.inputs * self.kernel**2

    @property
    def uses(self) -> int:
        """How often the layer multiplies each weight in a forward pass."""
        return self.batch * (1 if self.is_linear else (-(-self.size // self.stride)) ** 2)

    @property
    def words(self) -> str:
        """The shape in the form that tables use."""
        if self.is_linear:
            return f"{self.inputs} -> {self.outputs}"
        kernel = f"{self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        return f"{self.inputs} -> {self.outputs}, {kernel}, {self.size}x{self.size}"

    def as_record(self) -> dict[str, Any]:
        """The fields in the form that results files use."""
        return asdict(self)


@dataclass(frozen=True)
class Workload:
    """The layers of a network at one batch size.

    Attributes:
        network: The network's name.
        batch: Samples; tokens for a transformer.
        layers: How often the network has each shape, in the order of the network.
        training: Whether gradients are measured beside the forward pass.
    """

    network: str
    batch: int
    training: bool
    layers: Callable[[], Counter[Layer]] = field(repr=False)

    @property
    def name(self) -> str:
        """The name on the command line and in files."""
        return f"{self.network}-{self.batch}"


def convolutions(make: Callable[[], nn.Module], size: int, batch: int) -> Counter[Layer]:
    """Count the shapes of a network's convolutions.

    The first convolution, which reads three colours, is left out: sparse training keeps it dense.
    """
    found: Counter[Layer] = Counter()

    def count(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        if module.in_channels > 3:
            (kernel, _), (stride, _) = module.kernel_size, module.stride
            shape = (module.in_channels, module.out_channels, batch, args[0].shape[2])
            found[Layer(*shape, kernel=kernel, stride=stride)] += 1

    with torch.device("meta"):
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(count)
        model(torch.empty(1, 3, size, size))
    return found


def transformer_layers(width: int, blocks: int, tokens: int) -> Counter[Layer]:
    """Count the linear layers of a transformer: attention's two, and the two after it."""
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    return Counter({Layer(*shape, batch=tokens): blocks for shape in shapes})


#: The numbers of tokens that are measured only in inference.
FEW_TOKENS = (1, 16, 64)
MANY_TOKENS = (512, 2048, 4096)


def _workloads() -> list[Workload]:
    images: list[tuple[str, Callable[[], nn.Module], int, int, bool]] = [
        ("wrn-22-2", lambda: WideResNet(22, 2), 32, 128, True),
        ("cifar-resnet50", cifar_resnet50, 32, 128, True),
        ("imagenet-resnet50", resnet50, 224, 16, True),
        ("imagenet-resnet50", resnet50, 224, 1, False),
    ]
    found = [
        Workload(
            network,
            batch,
            training,
            lambda make=make, size=size, batch=batch: convolutions(make, size, batch),
        )
        for network, make, size, batch, training in images
    ]
    for network, width in (("gpt2", 768), ("vit-s", 384)):
        found += [
            Workload(
                network,
                tokens,
                tokens in MANY_TOKENS,
                lambda width=width, tokens=tokens: transformer_layers(width, 12, tokens),
            )
            for tokens in (*FEW_TOKENS, *MANY_TOKENS)
        ]
    return found


#: By name, in the order of the report.
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _workloads()}
