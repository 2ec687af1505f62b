"""The networks and figures of the paper (Sundar & Dwaraknath, 2021) that a test can check."""

import torch.nn.functional as F
from torch import Tensor, nn

# Forward FLOPs as a multiple of the dense model's, by density, to the digits that are given.
WRN_RATIOS = {
    "uniform": {0.05: 0.0527, 0.1: 0.1025, 0.2: 0.2022, 0.5: 0.5014},
    "erk": {0.05: 0.088, 0.1: 0.174, 0.2: 0.352, 0.5: 0.728},
}
RESNET_RATIOS = {
    "uniform": {0.05: 0.0513, 0.1: 0.1012, 0.2: 0.2011, 0.5: 0.5007},
    "erk": {0.05: 0.114, 0.1: 0.225, 0.2: 0.385, 0.5: 0.701},
}
WRN_PARAMETERS = 1_079_642
WRN_MACS = 157_730_048
RESNET_PARAMETERS = 23_705_252
RESNET_MACS = 1_298_014_208
# torchvision's ResNet-50 on 224x224, by distribution and density.
IMAGENET_RATIOS = {
    ("uniform", 0.2): 0.2231,
    ("uniform", 0.1): 0.1260,
    ("erk", 0.2): 0.4138,
    ("erk", 0.1): 0.2418,
}
IMAGENET_FLOPS = 8_178_368_512


class _Block(nn.Module):
    """Pre-activation: BN-ReLU-conv, BN-ReLU-dropout-conv, 1x1 shortcut where widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        return self.conv2(F.dropout(out, 0.3, self.training)) + residual


class WideResNet222(nn.Module):
    """WRN-22-2 for 32x32 images in ten classes, of the report's 1,079,642 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks, inputs = [], 16
        for outputs, stride in ((32, 1), (64, 2), (128, 2)):
            for i in range(3):
                blocks.append(_Block(inputs, outputs, stride if i == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


def cifar_resnet50() -> nn.Module:
    """torchvision's ResNet-50 with a 3x3 stem, no max-pooling and 100 classes."""
    from torchvision.models import resnet50

    model = resnet50(num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model
