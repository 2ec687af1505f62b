"""Run by ``.ci/check-wheel`` with an installed wheel, without a compiler: do its kernels work?"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    import torch

    import sparseopt
    from sparseopt.speedup import kernels

    torch.set_num_threads(2)
    package = Path(sparseopt.__file__).parent
    assert "site-packages" in package.parts, package
    assert kernels.available(), kernels.why_not()
    weight = torch.randn(32, 16, 3, 3).requires_grad_()
    positions = torch.randperm(weight.numel())[:460].sort().values
    lists = kernels.LiveLists(weight.shape, padding=1)
    lists.update(positions, version=1)
    mask = torch.zeros(weight.numel()).index_fill_(0, positions, 1.0).view_as(weight)
    x = torch.randn(8, 16, 12, 12, requires_grad=True)
    ours = kernels.conv2d(x, weight, None, lists)
    dense = torch.nn.functional.conv2d(x, weight * mask, None, 1, 1)
    torch.testing.assert_close(ours, dense)
    grad = torch.randn_like(dense)
    gradients = (torch.autograd.grad(y, (x, weight), grad) for y in (ours, dense))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    mapped = {
        Path(line.split()[-1])
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if ".so" in line
    }
    binaries = [path for path in mapped if package in path.parents]
    runtimes = [path for path in mapped if path.name.startswith(("libgomp", "libomp", "libiomp"))]
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {kernels.variant()}")
    print(f"kernels: {', '.join(path.name for path in binaries)}")
    print(f"OpenMP runtimes: {', '.join(map(str, runtimes))}")
    assert [path.parent.name for path in binaries] == ["prebuilt"], binaries
    assert len(runtimes) == 1, runtimes


if __name__ == "__main__":
    main()
