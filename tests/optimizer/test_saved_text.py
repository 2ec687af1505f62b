"""A value that is written as text comes back exactly, and torch's loaders see one string."""

import math

import pytest
import torch

from sparseopt.optimizer.saved_text import from_text, to_text

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "value", [0, -(2**70), True, None, "ä\n", 0.1, 5e-324, -0.0, math.inf, -math.inf]
)
def test_plain_value_comes_back_with_its_type(value):
    (back,) = from_text(to_text([value]), CPU)
    assert type(back) is type(value)
    assert back == value
    assert not isinstance(value, float) or math.copysign(1, back) == math.copysign(1, value)


def test_number_that_is_not_a_number_comes_back():
    assert math.isnan(from_text(to_text(math.nan), CPU))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensor_comes_back_to_the_last_bit(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    back = from_text(to_text({"kept": [tensor]}), CPU)["kept"][0]
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_tensor_of_the_cpu_comes_back_there_whatever_the_default_device():
    text = to_text(torch.ones(2))
    with torch.device("meta"):
        back = from_text(text, CPU)
    assert back.device == CPU
    assert back.tolist() == [1.0, 1.0]


def test_tensor_of_a_device_comes_back_on_the_weights_device(device):
    elsewhere = to_text(torch.ones(2, device=device))
    assert from_text(elsewhere, torch.device(device)).device.type == device
    assert from_text(elsewhere, CPU).device.type == "cpu"
    assert from_text(to_text(torch.ones(2)), torch.device(device)).device.type == "cpu"


def test_value_that_is_not_plain_is_refused_by_its_type():
    with pytest.raises(TypeError, match="can't hold complex"):
        to_text([1j])
