"""The operators for torch: what the dispatcher asks of them, compilation, higher derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls, inference_ops, ops
from tests.speedup.kernels.dense import lists_of, needs_kernels
from tests.speedup.kernels.test_convolution import LAYOUTS

pytestmark = [
    needs_kernels,
    # A warning about opcheck's own handling of the gradients that it compares.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "kernels"])
def test_convolutions_are_proper_operators(layout, dtype):
    lists = lists_of(torch.rand(7, 5, 3, 3) < 0.3, stride=2, padding=1)
    there, layout_ints = lists.tensor, lists.layout
    x = LAYOUTS[layout](torch.randn(4, 5, 8, 8)).to(dtype).requires_grad_()
    grad = LAYOUTS[layout](torch.randn(4, 7, 4, 4)).to(dtype).requires_grad_()
    values, bias = torch.randn(lists.live, requires_grad=True), torch.randn(7, requires_grad=True)
    operators = torch.ops.sparseopt
    torch.library.opcheck(operators.conv2d.default, (x, values, bias, there, layout_ints))
    torch.library.opcheck(
        operators.conv2d_input.default, (grad, values, there, layout_ints, [8, 8])
    )
    torch.library.opcheck(operators.conv2d_values.default, (x, grad, there, layout_ints))


def test_linear_layers_are_proper_operators():
    lists = lists_of(torch.rand(7, 5) < 0.3)
    x, grad = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 7, requires_grad=True)
    values = torch.randn(lists.live, requires_grad=True)
    operators = torch.ops.sparseopt
    torch.library.opcheck(operators.linear.default, (x, values, None, lists.tensor, lists.layout))
    torch.library.opcheck(
        operators.linear_input.default, (grad, values, lists.tensor, lists.layout)
    )
    torch.library.opcheck(operators.linear_values.default, (x, grad, lists.tensor, lists.layout))


def test_gather_and_scatter_are_proper_operators():
    lists = lists_of(torch.rand(7, 5, 3, 3) < 0.3)
    weight = torch.randn(7, 5, 3, 3, requires_grad=True)
    values = torch.randn(lists.live, requires_grad=True)
    operators = torch.ops.sparseopt
    torch.library.opcheck(operators.live_values.default, (weight, lists.tensor, lists.layout))
    torch.library.opcheck(
        operators.scatter_values.default,
        (values, lists.tensor, lists.layout, [7, 5, 3, 3], torch.float32, True),
    )


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(8))
        self.head = torch.nn.Parameter(torch.randn(10, 8))
        self.lists = kernels.LiveLists(self.weight.shape, padding=1)
        self.head_lists = kernels.LiveLists(self.head.shape)

    def set_live(self, count, version):
        for weight, lists, live in (
            (self.weight, self.lists, count),
            (self.head, self.head_lists, count // 4),
        ):
            lists.update(torch.randperm(weight.numel())[:live].sort().values, version)

    def forward(self, x):
        y = kernels.conv2d(x, self.weight, self.bias, self.lists).relu()
        return kernels.linear(y.mean((2, 3)), self.head, None, self.head_lists)


def gradients(network, call, x):
    network.zero_grad()
    call(x).square().sum().backward()
    return [p.grad for p in network.parameters()]


def test_training_compiles_as_one_graph_and_at_most_once_more_when_live_counts_change():
    network, x = Network(), torch.randn(5, 4, 6, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for version, count in enumerate((30, 60, 61, 100, 28, 288)):
        network.set_live(count, version)
        actual = gradients(network, compiled, x)
        torch.testing.assert_close(actual, gradients(network, network, x))
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_compiled_code_computes_the_same():
    network, x = Network(), torch.randn(5, 4, 6, 6)
    network.set_live(60, version=1)
    compiled = torch.compile(network, fullgraph=True)
    actual = gradients(network, compiled, x)
    torch.testing.assert_close(actual, gradients(network, network, x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


def test_eager_calls_and_operators_give_the_same_bits():
    lists, x = lists_of(torch.rand(7, 5, 3, 3) < 0.3), torch.randn(4, 5, 8, 8)
    values = torch.randn(lists.live)
    direct = ops.conv2d(x, values, None, lists.tensor, lists.layout)
    dispatched = torch.ops.sparseopt.conv2d(x, values, None, lists.tensor, lists.layout)
    assert torch.equal(direct, dispatched)


def second_derivatives(function, x, weight, bias):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    firsts = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)


def test_second_derivatives_of_a_convolution():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    lists = lists_of(mask, stride=2, padding=1)
    x, weight, bias = torch.randn(2, 3, 7, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    actual = second_derivatives(lambda x, w, b: kernels.conv2d(x, w, b, lists), x, weight, bias)
    expected = second_derivatives(
        lambda x, w, b: F.conv2d(x, w * mask, b, 2, 1), x.double(), weight.double(), bias.double()
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_second_derivatives_of_a_linear_layer():
    mask = torch.rand(4, 3) < 0.5
    lists = lists_of(mask)
    x, weight, bias = torch.randn(2, 5, 3), torch.randn(4, 3), torch.randn(4)
    actual = second_derivatives(lambda x, w, b: kernels.linear(x, w, b, lists), x, weight, bias)
    expected = second_derivatives(
        lambda x, w, b: F.linear(x, w * mask, b), x.double(), weight.double(), bias.double()
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_functional_transforms_see_the_operators():
    mask = torch.rand(4, 3) < 0.5
    lists, x, weight = lists_of(mask), torch.randn(2, 3), torch.randn(4, 3)
    grad = torch.func.grad(lambda w: kernels.linear(x, w, None, lists).square().sum())(weight)
    expected = torch.func.grad(lambda w: F.linear(x, w * mask).square().sum())(weight)
    torch.testing.assert_close(grad, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_forward_mode_derivative_is_refused_and_not_dropped():
    lists, x, weight = lists_of(torch.rand(4, 3) < 0.5), torch.randn(2, 3), torch.randn(4, 3)
    values = calls.live_values(weight, lists.tensor, lists.layout)
    for product in (
        lambda x: kernels.linear(x, weight, None, lists),
        lambda x: inference_ops.linear(x, values, None, lists.tensor, lists.layout, None),
    ):
        with torch.no_grad(), forward_ad.dual_level():
            torch.testing.assert_close(product(x), product(x))
            with pytest.raises(NotImplementedError, match="forward mode"):
                product(forward_ad.make_dual(x, torch.ones_like(x)))


def test_export_sees_the_operators():
    network = Network()
    network.set_live(60, version=1)
    x = torch.randn(5, 4, 6, 6)
    exported = torch.export.export(network, (x,))
    torch.testing.assert_close(exported.module()(x), network(x))


def test_fake_tensors_are_never_computed_with():
    lists = lists_of(torch.rand(4, 3, 3, 3) < 0.5)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        y = kernels.conv2d(torch.empty(2, 3, 5, 5), torch.empty(4, 3, 3, 3), None, lists)
    assert y.shape == (2, 4, 3, 3)
    assert calls.kernel_layout(y) is y
