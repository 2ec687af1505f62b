"""The rates that this machine could reach: measured by a small C++ program, on one core."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

from sparseopt.speedup.kernels import build

SOURCE = Path(__file__).with_name("limits.cpp")
#: The compiler options for the instructions of the kernels' variants.
INSTRUCTIONS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f",),
    "avx512_bf16": ("-mavx512f", "-mavx512bf16"),
    "avx512_bf16_dots": ("-mavx512f", "-mavx512bf16"),
    "neon": (),
}


def measure_limits(variant: str) -> dict[str, float]:
    """Return useful GFLOP/s of one core by what limits it, with one variant's instructions.

    Args:
        variant: The instruction set of the kernels.

    Raises:
        RuntimeError: If there is no C++ compiler.
    """
    compiler = build.find_compiler()
    if compiler is None:
        raise RuntimeError("the machine's limits are measured by C++, but no compiler was found")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        flags = ("-O3", "-std=c++17", "-Wno-psabi", *INSTRUCTIONS[variant])
        command = [*shlex.split(compiler), *flags, str(SOURCE), "-o", str(program)]
        subprocess.run(command, check=True)
        answer = subprocess.run([program], check=False, capture_output=True, text=True).stdout
    pairs = (line.split("\t") for line in answer.splitlines())
    return {name: float(rate) for name, rate in pairs}
