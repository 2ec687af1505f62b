"""Threads: the same bits for any number, calls at the same time, forks, one OpenMP runtime."""

import concurrent.futures
import functools
import hashlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls, library
from tests.speedup.kernels.dense import lists_of, needs_kernels

pytestmark = needs_kernels


@pytest.fixture
def set_threads(monkeypatch):
    monkeypatch.setattr(library, "WORK_OF_A_THREAD", 1)  # small tests use many, too
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def conv2d_products(batch, dtype, live=0.3):
    mask = torch.rand(24, 16, 3, 3, generator=torch.Generator().manual_seed(1)) < live
    lists = lists_of(mask, padding=1, stride=2)
    x = torch.linspace(-1, 1, batch * 16 * 81).sin().view(batch, 16, 9, 9).to(dtype)
    x = x.requires_grad_()
    weight = torch.linspace(-3, 3, mask.numel()).cos().view(mask.shape).requires_grad_()
    y = kernels.conv2d(x, weight, None, lists)
    y.backward(y.detach())
    return y.detach(), x.grad, weight.grad


def linear_products(tokens, dtype, live=0.3):
    mask = torch.rand(150, 70, generator=torch.Generator().manual_seed(1)) < live
    x = torch.linspace(-1, 1, tokens * 70).sin().view(tokens, 70).to(dtype).requires_grad_()
    weight = torch.linspace(-3, 3, mask.numel()).cos().view(mask.shape).requires_grad_()
    y = kernels.linear(x, weight, None, lists_of(mask))
    y.backward(y.detach())
    return y.detach(), x.grad, weight.grad


CASES = [
    *itertools.product([conv2d_products], [1, 37, 130], [torch.float32, torch.bfloat16]),
    *itertools.product([linear_products], [1, 37, 1300], [torch.float32, torch.bfloat16]),
]


@pytest.mark.parametrize(("products", "size", "dtype"), CASES)
def test_bits_do_not_depend_on_the_number_of_threads(products, size, dtype, set_threads):
    set_threads(1)
    alone = products(size, dtype)
    for count in (2, 3, 7):
        set_threads(count)
        for one, many in zip(alone, products(size, dtype), strict=True):
            assert torch.equal(one, many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_are_the_same_wherever_the_parts_of_threads_begin(dtype, set_threads):
    """They go past the caches in whole lines, which a part need not begin with."""
    mask = torch.rand(2080, 16) < 0.5
    x, weight, lists = torch.randn(1100, 16).to(dtype), torch.randn(2080, 16), lists_of(mask)
    set_threads(1)
    alone = kernels.linear(x, weight, None, lists)
    torch.testing.assert_close(alone, (x.float() @ (weight.to(dtype) * mask).T.float()).to(dtype))
    for count in (2, 3, 7):
        set_threads(count)
        assert torch.equal(alone, kernels.linear(x, weight, None, lists))


def test_reading_a_large_layer_for_one_token_is_work_for_several_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(calls, "threads", lambda work: asked.append(work) or 1)
    lists = lists_of(torch.rand(768, 3072) < 0.1)
    kernels.linear(torch.randn(1, 3072), torch.randn(768, 3072), None, lists)
    assert asked[-1] >= 2 * library.WORK_OF_A_THREAD


def test_several_threads_may_call_at_once():
    expected = conv2d_products(37, torch.float32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: conv2d_products(37, torch.float32), range(64))
        for result in results:
            assert all(map(torch.equal, expected, result))


def digest(x, values, lists):
    """Of the output; no operation of torch's own, which may hang in a forked child."""
    y = calls.conv2d(x, values, None, lists.tensor, lists.layout)
    return hashlib.sha256(y.permute(1, 2, 3, 0).numpy().tobytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_child_computes_after_its_parent_used_threads(set_threads):
    lists = lists_of(torch.rand(24, 16, 3, 3) < 0.3)
    x, values = calls.kernel_layout(torch.randn(64, 16, 9, 9)), torch.randn(lists.live)
    set_threads(2)
    expected = digest(x, values, lists)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(digest(x, values, lists)))
    child.start()
    child.join(timeout=60)
    hangs = child.is_alive()
    if hangs:
        child.kill()
    assert not hangs
    assert queue.get() == expected


class Features(torch.utils.data.Dataset):
    """Computes with the kernels in the loader's processes."""

    def __init__(self):
        self.lists, self.weight = lists_of(torch.ones(2, 3) > 0), torch.ones(2, 3)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return kernels.linear(torch.full((3,), float(index)), self.weight, None, self.lists)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
def test_workers_of_a_data_loader_compute(set_threads):
    set_threads(2)
    conv2d_products(64, torch.float32)
    loader = torch.utils.data.DataLoader(Features(), batch_size=2, num_workers=2, timeout=60)
    assert torch.cat(list(loader))[:, 0].tolist() == [0, 3, 6, 9]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_is_in_the_process():
    program = (
        "import torch\n"
        "from sparseopt.speedup import kernels\n"
        "assert kernels.available()\n"
        "print(open('/proc/self/maps').read())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    runtimes = set(re.findall(r"/\S*lib(?:gomp|iomp5|omp)\S*\.so\S*", result.stdout))
    assert len({Path(r).resolve() for r in runtimes}) == 1


def test_a_call_uses_as_many_threads_as_torch(set_threads):
    threads = functools.partial(library.threads, 10**9)
    set_threads(3)
    assert threads() == 3
    assert library.threads(1) == 1
    pid = os.fork() if hasattr(os, "fork") else None
    if pid == 0:
        os._exit(threads())
    if pid is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_layout_conversions_are_no_copy_of_what_lies_right():
    x = calls.kernel_layout(torch.randn(3, 4, 5, 6))
    assert calls.kernel_layout(x).data_ptr() == x.data_ptr()
