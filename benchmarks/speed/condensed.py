"""Inference of full networks: live weights against all dense implementations; file sizes."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torchvision.models import resnet50

from benchmarks.cifar.models import WideResNet
from benchmarks.common.arguments import density, positive
from benchmarks.common.start import INSTALL
from benchmarks.common.tables import paragraph, table_of
from benchmarks.common.units import MILLI
from benchmarks.speed.kernels.machine import (
    about_machine,
    file_suffix,
    keep_freed_memory,
    kind_of,
)
from benchmarks.speed.kernels.report import processor_of
from benchmarks.speed.records import Record, made_with
from benchmarks.speed.steps.figure import BF16, FP32
from benchmarks.speed.steps.workloads import Gpt, VisionTransformer, layers_of
from sparseopt import SparseOptimizer, condense, save_sparse
from sparseopt.speedup import kernels
from sparseopt.speedup.inference.dense_implementations import Frozen
from sparseopt.speedup.timing import Timing, time_in_turn

FIGURE = "condensed"
TOKENS = 50_257
#: How many calls are timed one after the other: as many as fit into SECONDS, but at least
#: LEAST_CALLS and at most this many.
CALLS = 200
LEAST_CALLS = 40
SECONDS = 8.0
FORMS = (FP32, BF16)
#: What ``by_onnxruntime`` imports, itself or through ``torch.onnx``.
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CALLERS = 2
#: How many kinds of calls the table of where the time goes has for each model.
KINDS = 5


def gpt2_small() -> nn.Module:
    """GPT-2 small (Radford et al., 2019), for inputs of one token."""
    model = Gpt(blocks=12, length=1)
    model.characters = nn.Embedding(TOKENS, 768)
    model.head = nn.Linear(768, TOKENS, bias=False)
    return model


def gpt2_small_blocks() -> nn.Module:
    """GPT-2 small without its head, which has a third of the weights and stays dense."""
    model = gpt2_small()
    model.head = nn.Identity()
    return model


@dataclass(frozen=True)
class Network:
    """A network and its inputs.

    Attributes:
        title: the network's name in tables.
        model: a function that makes the network.
        inputs: a function that makes a batch of a given number of samples.
        linear_only: whether only linear layers are sparse, all except the head.
        has_head: whether the last linear layer is a head.
    """

    title: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    linear_only: bool = False
    has_head: bool = True


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


NETWORKS = {
    "wrn-22-2": Network("WRN-22-2", lambda: WideResNet(22, 2), _images(32)),
    "resnet50": Network("ResNet-50, 224", resnet50, _images(224)),
    "vit-s": Network("ViT-S/16, 224", VisionTransformer, _images(224), True),
    "gpt2": Network(
        "GPT-2 small, one token", gpt2_small, lambda n: torch.randint(TOKENS, (n, 1)), True
    ),
    "gpt2-blocks": Network(
        "blocks of GPT-2 small, one token",
        gpt2_small_blocks,
        lambda n: torch.randint(TOKENS, (n, 1)),
        linear_only=True,
        has_head=False,
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add("--network", choices=tuple(NETWORKS), default="wrn-22-2", help="default: %(default)s")
    add("--batch", type=positive, default=64, help="samples at once (default: %(default)s)")
    add("--init", choices=("uniform", "erk"), default="uniform", help="default: %(default)s")
    live = "share of live weights (default: %(default)s)"
    add("--density", type=density, default=0.1, help=live)
    add("--rounds", type=positive, default=7, help="rounds that count (default: %(default)s)")
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    add("--no-onnx", action="store_true", help="leave ONNX Runtime out")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Condense one network, and time the result."""
    reason = kernels.why_not()
    if reason is not None:
        raise SystemExit(f"the sparse kernels are not available on this machine: {reason}")
    if not options.no_onnx:
        require_onnxruntime()
    keep_freed_memory()
    torch.manual_seed(0)
    network = NETWORKS[options.network]
    model = network.model().eval()
    masks = masks_of(network, model, options.init, options.density)
    x = network.inputs(options.batch)
    condensed = condense(
        model,
        masks,
        example_inputs=x,
        compiled=not options.no_compile,
        rounds=options.rounds,
    )
    report = condensed.report
    about = about_machine(torch.get_num_threads())
    record = {
        "network": options.network,
        "batch": options.batch,
        "init": options.init,
        "density": options.density,
        "live": _share(masks),
        "machine": about,
        "chosen": report.key,
        "milliseconds": {name: _quartiles(one) for name, one in report.times.items()},
        "missing": dict(report.failed),
        "layers": {one.name: one.chosen for one in report.layers},
        "files": file_sizes(model, masks),
    }
    if report.key.startswith("sparse") and isinstance(condensed.model, fx.GraphModule):
        record["profile"] = profile(condensed.model, x, options.rounds)
    if options.batch == 1:
        record["server"] = serve(condensed.model, x) | {"dense": serve(model, x)}
    if not options.no_onnx:
        record["onnxruntime"] = by_onnxruntime(model, x, options.rounds)
    case = f"{options.network}-{options.batch}-{options.init}-{options.density:g}"
    yield f"{FIGURE}-{case}{file_suffix(about)}", record


def require_onnxruntime() -> None:
    """Refuse to start without ONNX Runtime and the packages that export a model to it.

    Raises:
        SystemExit: If a package is missing; it says what installs it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"error: ONNX Runtime is timed too, but {', '.join(missing)} cannot be imported; "
            f"install the packages of the benchmarks by {INSTALL}, or give --no-onnx"
        )


def masks_of(network: Network, model: nn.Module, init: str, density: float) -> dict[str, Tensor]:
    """Mask a model at random, and return the masks."""
    layers = dict(layers_of(model))
    head = list(layers)[-1] if network.has_head else None
    given: Any = init
    if network.linear_only:
        given = {
            name: density if isinstance(one, nn.Linear) and name != head else 1.0
            for name, one in layers.items()
        }
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SparseOptimizer(inner, model, method="static", density=density, init=given)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    optimizer.detach()
    return masks


PROFILES = (
    "Where the time of the sparse model goes: milliseconds of wall time in the calls of its graph, "
    "by kind, in float32. `Live...` are layers on live weights, `Dense...` are dense layers."
)


class _Stopwatch(fx.Interpreter):
    """Runs a graph, and adds up the seconds of its calls by kind."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.seconds: dict[str, float] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        kind = type(self.fetch_attr(target)).__name__
        return self._timed(kind, super().call_module, target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(target.__name__, super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(target, super().call_method, target, args, kwargs)

    def _timed(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start
        return result


@torch.no_grad()
def profile(model: fx.GraphModule, x: Tensor, rounds: int) -> dict[str, float]:
    """Return the median milliseconds that each kind of call takes in one pass, longest first."""
    passes = []
    for _ in range(rounds):
        watch = _Stopwatch(model)
        watch.run(x)
        passes.append(watch.seconds)
    median = {k: MILLI * statistics.median(one[k] for one in passes) for k in passes[0]}
    return dict(sorted(median.items(), key=lambda item: -item[1]))


def file_sizes(model: nn.Module, masks: dict[str, Tensor]) -> Record:
    """Return the bytes of sparse weights: dense in float32, and in a sparse file."""
    dense = sum(4 * mask.numel() for mask in masks.values() if not mask.all())
    rest = sum(one.numel() * one.element_size() for one in model.state_dict().values()) - dense
    sizes = {"dense": dense}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            path = Path(folder) / "model.safetensors"
            save_sparse(path, model, masks, dtype=dtype)
            sizes[name] = path.stat().st_size - rest
    return sizes


@torch.no_grad()
def serve(model: nn.Module, x: Tensor) -> Record:
    """Return the latencies of calls one after the other, and the calls a second by threads."""
    warm = min(_seconds(model, x) for _ in range(5))
    count = max(LEAST_CALLS, min(CALLS, int(SECONDS / warm)))
    latencies = [_seconds(model, x) for _ in range(count)]
    p50, p90, p99 = (MILLI * float(np.quantile(latencies, q)) for q in (0.5, 0.9, 0.99))
    alone = 1 / statistics.mean(latencies)

    def call() -> None:
        with torch.no_grad():
            for _ in range(count // CALLERS):
                model(x)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    start = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    together = count / (time.perf_counter() - start)
    rates = {"1": alone, str(CALLERS): together}
    record = {"count": count, "p50": p50, "p90": p90, "p99": p99, "calls": rates}
    taken = bytes_to_serve(model, x)
    return record if taken is None else record | {"bytes": taken}


def bytes_to_serve(model: nn.Module, x: Tensor) -> int | None:
    """Return the memory that a fresh process takes to load a model and to call it three times.

    Python, torch and the kernels are loaded before, and do not count. The result is ``None`` for a
    frozen program, which torch can't save together with other modules.
    """
    if any(isinstance(module, Frozen) for module in model.modules()):
        return None
    with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(1) as pool:
        path = Path(folder) / "model.pt"
        torch.save((model, x), path)
        return pool.apply(_bytes_to_serve, (path, torch.get_num_threads()))


@torch.no_grad()
def _bytes_to_serve(path: Path, threads: int) -> int:
    import psutil

    torch.set_num_threads(threads)
    kernels.available()
    process = psutil.Process()
    before = process.memory_info().rss
    model, x = torch.load(path, weights_only=False)
    for _ in range(3):
        model(x)
    gc.collect()
    return int(process.memory_info().rss - before)


def _seconds(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def by_onnxruntime(model: nn.Module, x: Tensor, rounds: int) -> float:
    """Return the median milliseconds of ONNX Runtime on the same model, in float32."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: x.numpy()}
        times = time_in_turn(
            {"onnx": lambda: session.run(None, given)}, rounds=rounds, device="cpu", warmup=2
        )
    return MILLI * times["onnx"].median


def _share(masks: dict[str, Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def _quartiles(timing: Timing) -> list[float]:
    return [MILLI * one for one in (timing.q1, timing.median, timing.q3)]


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each network, batch and density; then latencies and calls a second of a server."""
    lines = ["## Inference on live weights", ""]
    lines += paragraph(
        "Milliseconds from end to end of the fastest dense implementation and of the sparse model "
        "in each number format, and their ratio. `condense` timed both in turn in one process. "
        "*File* is the size of the sparse weights over the size of the same weights dense in "
        "float32."
    )
    lines += made_with(records, "network", "batch", "init", "density")
    lines += table_of(rows(records))
    if any("server" in one for one in records):
        lines += [
            "",
            *paragraph("Calls one after the other with one sample each, and calls per second."),
        ]
        lines += table_of(served(records))
    if any("profile" in one for one in records):
        lines += ["", *paragraph(PROFILES), *table_of(profiles(records))]
    return lines


def fastest_of(record: Record, form: str) -> tuple[str, float, float] | None:
    """The fastest dense implementation in a number format, its milliseconds, and ours."""
    medians = {
        name.removesuffix(f", {form}"): times[1]
        for name, times in record["milliseconds"].items()
        if name.endswith(form)
    }
    sparse = [time for name, time in medians.items() if name.startswith("sparse")]
    dense = {name: time for name, time in medians.items() if not name.startswith("sparse")}
    if not dense or not sparse:
        return None
    implementation = min(dense, key=dense.__getitem__)
    return implementation, dense[implementation], min(sparse)


def was_compiled(record: Record) -> bool:
    """Whether torch.compile was among the dense implementations that were timed."""
    return any(name.startswith("torch.compile") for name in record["milliseconds"])


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row by their column."""
    return [_row(record) for record in _in_order(records)]


def served(records: Sequence[Record]) -> list[dict[str, str]]:
    """Two rows for each network that was called with one sample at a time."""
    return [row for one in _in_order(records) if "server" in one for row in _served(one)]


def _in_order(records: Sequence[Record]) -> list[Record]:
    """By network and batch, and ordinary processors first."""

    def place(record: Record) -> tuple[Any, ...]:
        machine, threads = record["machine"], record["environment"]["threads"]
        case = list(NETWORKS).index(record["network"]), record["batch"]
        return *case, kind_of(machine), threads, record["init"] == "erk", record["density"]

    return sorted(records, key=place)


def profiles(records: Sequence[Record]) -> list[dict[str, str]]:
    """A row for each model whose calls were timed one by one."""
    return [
        {
            "network": NETWORKS[one["network"]].title,
            "batch": str(one["batch"]),
            "density": f"{one['density']:g}, {one['init']}",
            "processor": processor_of(one["machine"]),
            "threads": str(one["environment"]["threads"]),
            "milliseconds": _longest(one["profile"]),
        }
        for one in _in_order([one for one in records if "profile" in one])
    ]


def _longest(profile: dict[str, float]) -> str:
    shown = list(profile.items())[:KINDS]
    rest = sum(profile.values()) - sum(time for _, time in shown)
    cells = [f"{kind} {time:.3g}" for kind, time in shown]
    return ", ".join(cells if len(profile) <= KINDS else [*cells, f"others {rest:.2g}"])


def _row(record: Record) -> dict[str, str]:
    cells = {
        "network": NETWORKS[record["network"]].title,
        "batch": str(record["batch"]),
        "density": f"{record['density']:g}, {record['init']}",
        "processor": processor_of(record["machine"]),
        "threads": str(record["environment"]["threads"]),
    }
    for form in FORMS:
        fastest = fastest_of(record, form)
        if fastest is None:
            continue
        implementation, dense, sparse = fastest
        cells[f"dense, {form}"] = f"{dense:.4g}, {implementation}"
        cells[f"sparse, {form}"] = f"{sparse:.4g}"
        cells[f"ratio, {form}"] = f"{dense / sparse:.2f}"
    cells["torch.compile timed"] = "yes" if was_compiled(record) else "no"
    if "onnxruntime" in record:
        cells["ONNX Runtime, float32"] = f"{record['onnxruntime']:.4g}"
    files = record["files"]
    cells["file"] = f"{files['float32'] / files['dense']:.3f}"
    cells["file, bfloat16 values"] = f"{files['bfloat16'] / files['dense']:.3f}"
    return cells


def _served(record: Record) -> Iterator[dict[str, str]]:
    server = record["server"]
    for name, one in (("condensed", server), ("as it is", server["dense"])):
        yield {
            "network": NETWORKS[record["network"]].title,
            "density": f"{record['density']:g}, {record['init']}",
            "model": name,
            "processor": processor_of(record["machine"]),
            "threads": str(record["environment"]["threads"]),
            **{f"{p}, ms": f"{one[p]:.3g}" for p in ("p50", "p90", "p99")},
            "memory, MB": f"{one['bytes'] / 1e6:.0f}" if "bytes" in one else "-",
            **{
                f"calls/s, {callers} caller{'s' * (callers != '1')}": f"{rate:.3g}"
                for callers, rate in one["calls"].items()
            },
        }
