"""Every optimizer of widely used packages, and how to make each of them."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tests.support.catalogue import build as build_of_torch
from tests.support.catalogue import torch_optimizers

#: They take matrices and the rest in groups of their own.
BY_SHAPE = frozenset({"adago", "adamuon", "muon", "muonclip", "normuon"})
OPTIONS: dict[str, dict[str, Any]] = {
    "adashift": {"keep_num": 2},
    "ranger21": {"num_iterations": 40},
}
_INSIDE = "steps inside of backward() and leaves nothing to a step()"
_PROCESSES = "exchanges gradients between processes"
_ACCELERATOR = "needs an accelerator"
_PACKAGE = "needs a package that is not on PyPI"
#: Optimizers that cannot be made or stepped here, and why.
LEFT_OUT = {
    "bitsandbytes-AdEMAMix32bit": "its own step() fails on a CPU",
    "bitsandbytes-PagedAdEMAMix32bit": "its own step() fails on a CPU",
    "pytorch_optimizer-adalomo": _INSIDE,
    "pytorch_optimizer-bsam": "wants a gradient before it has called its closure",
    "pytorch_optimizer-demo": _PROCESSES,
    "pytorch_optimizer-distributedmuon": _PROCESSES,
    "pytorch_optimizer-lomo": _INSIDE,
    "torchao-CPUOffloadOptimizer": _ACCELERATOR,
    "transformers-adalomo": _INSIDE,
    "transformers-adamw_anyprecision": _PACKAGE,
    "transformers-adamw_torch_npu_fused": _ACCELERATOR,
    "transformers-adamw_torch_xla": _ACCELERATOR,
    "transformers-ademamix": "is AdEMAMix32bit of bitsandbytes",
    "transformers-apollo_adamw_layerwise": _INSIDE,
    "transformers-galore_adafactor_layerwise": _INSIDE,
    "transformers-galore_adamw_8bit": _ACCELERATOR,
    "transformers-galore_adamw_8bit_layerwise": _INSIDE,
    "transformers-galore_adamw_layerwise": _INSIDE,
    "transformers-lomo": _INSIDE,
    "transformers-paged_ademamix_32bit": "is PagedAdEMAMix32bit of bitsandbytes",
    "transformers-stable_adamw": _ACCELERATOR,
}
#: The packages of transformers' ``optim=`` names, by the beginning of the name.
_ELSEWHERE = {
    "apollo": "apollo_torch",
    "galore": "galore_torch",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
}


@dataclass(frozen=True)
class Packaged:
    """An optimizer of a package.

    Attributes:
        package: the package.
        name: what the package calls it.
    """

    package: str
    name: str

    def __str__(self) -> str:
        return f"{self.package}-{self.name}"

    def build(self, params: Any) -> Optimizer:
        """Make the optimizer from parameters, or from a model if it takes only models."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _BUILDERS[self.package](self.name, params)

    @property
    def missing(self) -> str | None:
        """A further package that the optimizer needs and that is not installed."""
        for beginning, package in _ELSEWHERE.items():
            if self.package == "transformers" and self.name.startswith(beginning):
                return package if importlib.util.find_spec(package) is None else None
        return None

    @property
    def takes_large(self) -> bool:
        """Whether the optimizer is special only for parameters of 4096 entries or more."""
        name = self.name.lower()
        return any(part in name for part in ("8bit", "4bit", "fp8"))


def packaged_optimizers() -> Iterator[Packaged]:
    """All optimizers of installed packages, except those in `LEFT_OUT`."""
    for package, names in _LISTS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names():
                if f"{package}-{name}" not in LEFT_OUT:
                    yield Packaged(package, name)


def _of_pytorch_optimizer() -> list[str]:
    import pytorch_optimizer

    return [
        name
        for name in pytorch_optimizer.get_supported_optimizers()
        if pytorch_optimizer.load_optimizer(name).__module__.startswith("pytorch_optimizer")
    ]


def _build_of_pytorch_optimizer(name: str, params: Any) -> Optimizer:
    import pytorch_optimizer

    kind = pytorch_optimizer.load_optimizer(name)
    if name == "adammini" and not isinstance(params, nn.Module):
        params = nn.ParameterList(params)
    elif name in BY_SHAPE:
        params = [
            {"params": [p for p in _each(params) if p.ndim > 1], "use_muon": True},
            {"params": [p for p in _each(params) if p.ndim == 1], "use_muon": False},
        ]
        params = [group for group in params if group["params"]]
    elif name != "adammini":
        params = _each(params)
    return kind(params, **OPTIONS.get(name, {}))


def _of_timm() -> list[str]:
    from timm.optim import list_optimizers

    # The optimizers of apex, and timm's wrappers of bitsandbytes, need a GPU.
    return [name for name in list_optimizers() if not name.startswith(("fused", "bnb"))]


def _build_of_timm(name: str, params: Any) -> Optimizer:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(_each(params), opt=name, lr=0.01)


def _of_bitsandbytes() -> list[str]:
    import bitsandbytes

    return [
        name
        for name, value in vars(bitsandbytes.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer)
    ]


def _build_of_bitsandbytes(name: str, params: Any) -> Optimizer:
    import bitsandbytes

    kind = getattr(bitsandbytes.optim, name)
    options: dict[str, Any] = {"lr": 0.01}
    if "momentum" in inspect.signature(kind).parameters:
        options["momentum"] = 0.9
    return kind(_each(params), **options)


def _of_torchao() -> list[str]:
    import torchao.optim

    return [
        name
        for name, value in vars(torchao.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer)
    ]


def _build_of_torchao(name: str, params: Any) -> Optimizer:
    import torchao.optim

    return getattr(torchao.optim, name)(_each(params), lr=0.01)


def _of_transformers() -> list[str]:
    from transformers.training_args import OptimizerNames

    return [name.value for name in OptimizerNames]


def _build_of_transformers(name: str, params: Any) -> Optimizer:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir="unused", optim=name, use_cpu=True, report_to=[])
    arguments.learning_rate = 0.01
    if not name.startswith(("galore", "apollo")):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        return kind(_each(params), **options)
    # These ask the model which layers have a basis of their own.
    arguments.optim_target_modules = "all-linear"
    model = params if isinstance(params, nn.Module) else _with_weight(*params)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind(options.pop("params"), **options)


def _with_weight(weight: nn.Parameter) -> nn.Module:
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = weight
    return nn.Sequential(linear)


def _each(params: Any) -> list[nn.Parameter]:
    return list(params.parameters() if isinstance(params, nn.Module) else params)


def _build_of_torch(name: str, params: Any) -> Optimizer:
    return build_of_torch(name, _each(params))


_LISTS: dict[str, Callable[[], list[str]]] = {
    "torch": torch_optimizers,
    "pytorch_optimizer": _of_pytorch_optimizer,
    "timm": _of_timm,
    "bitsandbytes": _of_bitsandbytes,
    "torchao": _of_torchao,
    "transformers": _of_transformers,
}
_BUILDERS: dict[str, Callable[[str, Any], Optimizer]] = {
    "torch": _build_of_torch,
    "pytorch_optimizer": _build_of_pytorch_optimizer,
    "timm": _build_of_timm,
    "bitsandbytes": _build_of_bitsandbytes,
    "torchao": _build_of_torchao,
    "transformers": _build_of_transformers,
}
