"""No result depends on memory that nobody has written: here it is full of NaN."""

import os
import shutil
import subprocess
import sys

import pytest

from sparseopt.speedup import kernels

# What asks for memory gets 0xff in all its bytes, which is NaN in every format.
FILL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
void *aligned_alloc(size_t alignment, size_t size) {
  void *(*real)(size_t, size_t) = dlsym(RTLD_NEXT, "aligned_alloc");
  void *memory = real(alignment, size);
  return memory ? memset(memory, 0xff, size) : memory;
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
  int (*real)(void **, size_t, size_t) = dlsym(RTLD_NEXT, "posix_memalign");
  int status = real(memory, alignment, size);
  if (!status) memset(*memory, 0xff, size);
  return status;
}
"""
CASES = """
import torch
from tests.speedup.kernels.test_convolution import compare
from sparseopt.speedup import kernels
torch.set_num_threads(1)
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for batch in (1, 3, 15):
        for kernel, padding, stride in ((1, 0, 1), (3, 1, 1), (3, 1, 2), (7, 3, 2)):
            mask = torch.rand(7, 5, kernel, kernel) < 0.3
            mask[0, 0, 0, 0] = True
            compare(
                *(batch, 5, (7, 7), 7, (kernel, kernel), (stride, stride), (padding, padding)),
                *((1, 1), mask, dtype, "kernels"),
            )
print("all are right")
"""


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library")
def test_products_do_not_read_memory_that_nobody_wrote(tmp_path):
    source, library = tmp_path / "fill.c", tmp_path / "fill.so"
    source.write_text(FILL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    answer = subprocess.run(
        [sys.executable, "-c", CASES],
        env={**os.environ, "LD_PRELOAD": str(library)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip().endswith("all are right"), answer.stderr[-2000:]
