"""Collects an optimizer while torch imports, for the first time, what it needs to pause a trace."""

import gc
import importlib.util
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from sparseopt import SparseOptimizer

model = torch.nn.Linear(32, 16)
inner = torch.optim.AdamW(model.parameters())
optimizers = [SparseOptimizer(inner, model, density=0.25, total_steps=1000, state="live")]
model(torch.ones(4, 32)).square().sum().backward()
optimizers[0].step()


class Collecting:
    """Collects the optimizer before the module's own code runs."""

    @classmethod
    def find_spec(cls, name, path, target=None):
        if name != "torch._subclasses.schema_check_mode":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            optimizers.clear()
            gc.collect()
            execute(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Collecting)
with FakeTensorMode():
    with _disable_current_modes():
        pass
    optimizers.clear()
    gc.collect()
print(*sorted(tuple(held["exp_avg"].shape) for held in inner.state.values()))
