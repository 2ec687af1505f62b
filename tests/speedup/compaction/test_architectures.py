"""Compacted and masked models agree, on architectures that people train."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import resnet

from benchmarks.cifar.models import WideResNet
from sparseopt import compact
from tests.speedup.masking import optimizer_without_half, settle


def cifar_resnet50():
    model = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def vision_transformer():
    model = torchvision.models.vit_b_16(image_size=32)
    # It starts at zero, and so would all outputs.
    nn.init.normal_(model.heads.head.weight)
    return model


MODELS = {
    "wrn-22-2": lambda: WideResNet(22, 2),
    "cifar resnet50": cifar_resnet50,
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "densenet121": torchvision.models.densenet121,
    "vit_b_16": vision_transformer,
}
#: Upper bounds on the share of multiplications that is left if half of all filters are dropped at
#: random. Where the outputs of many layers are added, few channels are dropped in all of them.
AT_MOST = {
    "wrn-22-2": 0.65,
    "cifar resnet50": 0.6,
    "resnet18": 0.65,
    "mobilenet_v2": 0.4,
    "densenet121": 0.45,
    "vit_b_16": 0.95,
}


def gradients_of(model, image):
    torch.manual_seed(0)
    model.zero_grad()
    outputs = model(image)
    outputs.square().mean().backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


def cut(tensor, kept):
    for dim, positions in kept.items():
        tensor = tensor.index_select(dim, positions)
    return tensor


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_masked_model(name):
    torch.manual_seed(0)
    # In double precision, so that differences beyond rounding show.
    model = without_dropout(MODELS[name]()).double()
    optimizer = optimizer_without_half(model)
    image = torch.randn(2, 3, 32, 32, dtype=torch.double)
    settle(model, image)
    compacted = compact(model, optimizer, example_inputs=image)
    assert compacted.report.flops_ratio < AT_MOST[name]
    for mode in (False, True):
        masked, smaller = copy.deepcopy(model).train(mode), compacted.model.train(mode)
        expected, gradients = gradients_of(masked, image)
        assert expected.abs().max() > 0.01
        found, smaller_gradients = gradients_of(smaller, image)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        # A convolution without bias may have got one, for constants.
        for parameter in smaller_gradients.keys() & gradients.keys():
            gradient = smaller_gradients[parameter]
            reference = cut(gradients[parameter], compacted.kept.get(parameter, {}))
            torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-8)
