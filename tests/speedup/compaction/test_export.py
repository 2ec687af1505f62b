"""A compacted model goes wherever an ordinary model goes."""

import pytest
import torch

from benchmarks.cifar.models import WideResNet
from sparseopt import compact
from tests.speedup.masking import optimizer_without_half, settle

IMAGE = (2, 3, 16, 16)


@pytest.fixture
def smaller():
    torch.manual_seed(0)
    model = WideResNet(10, 1)
    optimizer = optimizer_without_half(model)
    settle(model, torch.randn(IMAGE))
    smaller = compact(model, optimizer, example_inputs=torch.randn(IMAGE)).model.eval()
    assert smaller.groups[2][0].conv1.out_channels < 64
    return smaller


def test_smaller_model_is_exported_by_torch(smaller):
    image = torch.randn(IMAGE)
    program = torch.export.export(smaller, (image,))
    torch.testing.assert_close(program.module()(image), smaller(image))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_smaller_model_is_exported_to_onnx_and_another_runtime_computes_the_same(smaller, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    image = torch.randn(IMAGE)
    file = tmp_path / "model.onnx"
    torch.onnx.export(smaller, (image,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), smaller(image), rtol=1e-4, atol=1e-4)


def test_compacted_model_is_pickled_and_loaded_without_the_larger_one(smaller, tmp_path):
    torch.save(smaller, tmp_path / "model.pt")
    assert b"sparseopt" not in (tmp_path / "model.pt").read_bytes()
    image = torch.randn(IMAGE)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(image), smaller(image))
