"""Sparse networks, with BatchNorms as after training, and a fast call of ``condense``."""

import torch
from torch import nn

from sparseopt import condense
from sparseopt.speedup.inference.live_layers import LiveConv2d, LiveLinear


def quickly(model, masks, x, **settings):
    settings = {"rounds": 1, "compiled": False, **settings}
    return condense(model, masks, example_inputs=x, **settings)


def live_layers(model):
    return [one for one in model.modules() if isinstance(one, (LiveConv2d, LiveLinear))]


def sparse_masks(model, density=0.2, seed=0):
    """Mask every layer of more than three channels, and return the masks by parameter name."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.shape[1] > 3:
            mask = torch.rand(module.weight.shape, generator=generator) < density
            mask.view(-1)[0] = True
            masks[f"{name}.weight" if name else "weight"] = mask
            with torch.no_grad():
                module.weight[~mask] = 0
    return masks


def settled(model, seed=0):
    """Give BatchNorms statistics, scales and shifts, and return the model for inference."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class Residual(nn.Module):
    """A block that ends with a ReLU, a block that begins with a BatchNorm, and a head."""

    def __init__(self, channels=16):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x):
        x = self.relu(self.norm0(self.stem(x)))
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.short(x)
        x = nn.functional.relu6(out) + x
        x = self.conv3(self.relu(self.norm3(x)))
        x = nn.functional.max_pool2d(self.dropout(x), 2)
        return self.head(torch.flatten(self.pool(x), 1))


class Untraceable(nn.Module):
    """A model that branches on values of its input, so that it can't be traced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.norm(self.conv(x)).relu())
        if x.sum() > -1e9:
            x = self.conv2(x)
        return {"logits": self.head(x.mean((2, 3)))}
