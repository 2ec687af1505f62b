"""Every instruction set that this processor can run, beside the one that all other tests use."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build, cpu
from tests.speedup.kernels.dense import needs_compiler, needs_kernels

HERE = Path(__file__).parent
PRODUCTS = [
    "test_convolution.py::test_products_are_those_of_a_dense_convolution",
    "test_convolution.py::test_many_channels_make_many_bands",
    "test_linear.py::test_products_are_those_of_a_dense_layer",
    "test_linear.py::test_wide_layers",
    "test_linear.py::test_one_token_with_rows_of_every_length",
    "test_non_finite.py",
]


@pytest.mark.slow
@needs_kernels
@needs_compiler
@pytest.mark.parametrize("variant", build.VARIANTS.get(platform.machine(), ()))
def test_products_of_every_instruction_set_are_those_of_dense_layers(variant):
    if variant not in cpu.supported_variants(build.VARIANTS):
        pytest.skip(f"this processor cannot run {variant}")
    if variant == kernels.variant():
        pytest.skip("all other tests use these instructions")
    # A process has one binary, so the tests of the products run in a process of their own.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, *(str(HERE / name) for name in PRODUCTS)],
        env={**os.environ, "SPARSEOPT_KERNELS": variant},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout, result.stdout
