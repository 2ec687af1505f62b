"""FLOPs of well-known networks equal two other counters.

They count more and other things. What is left of them to compare: operations by weights, that is
convolutions and linear maps. PyTorch's counter counts two FLOPs for a multiplication with its
addition, as we do; fvcore counts one. Neither counts the additions of a bias, so biases of linear
layers are taken off.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.slow

#: Input shapes that every layer survives; costs don't depend on what is in them.
NETWORKS = {
    "alexnet": (2, 3, 64, 64),
    "convnext_tiny": (2, 3, 64, 64),
    "densenet121": (2, 3, 64, 64),
    "efficientnet_b0": (2, 3, 64, 64),
    "mnasnet0_5": (2, 3, 64, 64),
    "mobilenet_v2": (2, 3, 64, 64),
    "mobilenet_v3_small": (2, 3, 64, 64),
    "r3d_18": (1, 3, 4, 32, 32),
    "resnet18": (2, 3, 64, 64),
    "resnext50_32x4d": (2, 3, 64, 64),
    "shufflenet_v2_x0_5": (2, 3, 64, 64),
    "squeezenet1_1": (2, 3, 64, 64),
    "swin_t": (1, 3, 64, 64),
    "vit_b_16": (1, 3, 224, 224),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network of zeros, and an input."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(request.param, weights=None)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.bias = None
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_bias = None
    return model, torch.zeros(NETWORKS[request.param])


def ours(model, x):
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=1.0
    )
    report = optimizer.flops(model, x)
    assert (
        report.inference_sparse
        == report.inference_dense
        == sum(layer.dense for layer in report.layers)
    )
    return report.inference_dense * len(x)


@pytest.fixture
def _no_fast_path():
    """Neither of the other counters counts the projections of attention here."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("_no_fast_path")
def test_dense_networks_cost_what_pytorchs_counter_says(network):
    model, x = network
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    by_operator = counter.get_flop_counts()["Global"]
    aten = torch.ops.aten
    # bmm and scaled_dot_product_attention multiply activations by activations.
    weighted = sum(by_operator.get(op, 0) for op in (aten.convolution, aten.addmm, aten.mm))
    assert ours(model, x) == weighted > 0


@pytest.mark.usefixtures("_no_fast_path")
def test_dense_networks_cost_what_fvcore_says(network):
    model, x = network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It traces with torch.jit, which is deprecated.
        analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis(model, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    # "matmul" and the like multiply activations by activations.
    assert ours(model, x) == 2 * (by_operator["conv"] + by_operator["linear"]) > 0
