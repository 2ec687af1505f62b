"""The networks that are trained."""

from benchmarks.cifar.models.resnet import ResNet
from benchmarks.cifar.models.wide_resnet import WideResNet, small_dense_scale

__all__ = ["ResNet", "WideResNet", "small_dense_scale"]
