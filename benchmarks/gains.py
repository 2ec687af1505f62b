"""The gains and the costs of training at a tenth of the weights, in one line each.

README and docs open with this table; every number in it comes from the committed results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from benchmarks import overview, processors
from benchmarks.cifar import overview as cifar
from benchmarks.cifar.report.results import Group
from benchmarks.common.tables import span, table
from benchmarks.common.words import counted
from benchmarks.overhead.contenders import OURSELVES, PLAIN
from benchmarks.overhead.results import Entry, Results, threads
from benchmarks.overhead.tables import held_in_all, ordinary_step
from benchmarks.overhead.workloads import WORKLOADS as MODELS
from benchmarks.speed.kernels.machine import AMX, AVX2, INTEL, ORDINARY, WITHOUT_AVX512
from benchmarks.speed.records import Record
from benchmarks.speed.steps.figure import BF16, FP32
from benchmarks.speed.steps.workloads import WORKLOADS

DENSITY = overview.DENSITY
#: Networks of a common size. Small networks have tables of their own.
NETWORKS = ("wrn-22-2", "resnet-50", "gpt")
#: The methods of the line on accuracy, and what it calls them.
ACCURACIES = {"rigl": "RigL", "set": "SET", "static": "a fixed mask", "dense": "dense"}
HEADER = ("", f"at density {DENSITY:g}, compared with dense training", "details")


def lines(docs: str = "") -> list[str]:
    """The table in Markdown.

    Args:
        docs: The path of the docs from the page with the table, such as ``docs/``.
    """
    found = (
        ("memory", _memory(), "what it costs", "results/cost.md"),
        ("optimizer step", _step(), "what it costs", "results/cost.md"),
        ("training, CPU", _training(), "training on live weights", "results/live-training.md"),
        ("inference, CPU", _inference(), "inference", "results/inference.md"),
        ("accuracy", _accuracy(), "reproduction", "results/reproduction.md"),
        ("*not* faster", _not_faster(), "why", "how-to/faster.md"),
    )
    rows = [[name, text, f"[{words}]({docs}{page})"] for name, text, words, page in found]
    return table(HEADER, rows)


def cost_conclusion() -> str:
    """The conclusion of the page on the cost of the wrapper."""
    results = Results(overview.OVERHEAD)
    found = [(entry, overview.training_share(results, entry)) for entry in _costs()]
    known = [(entry, share) for entry, share in found if share is not None]
    shares = sorted(100 * share for _, share in known)
    return (
        f"At density {DENSITY:g}, {_memory()}. The {_step()}; below 1, it is shorter. The time of "
        f"full training steps changes by {shares[0]:+.1f} to {shares[-1]:+.1f} %. Very small "
        "networks have rows of their own below."
    )


def reproduction_conclusion() -> str:
    """The conclusion of the page on accuracy."""
    group = cifar.headline()[-1]
    variants = cifar.main_variants(group)
    reduced = " None of the shortened runs reaches the published accuracy."
    return (
        f"{_accuracy()}.{reduced if group.protocol['reduced'] else ''} "
        f"{' '.join(cifar.order_sentences(group, variants))}"
    )


def structured_conclusion() -> str:
    """The conclusion of the page on structured sparsity."""
    rows = [row for row in overview.speed_rows("training") if row["density"] == f"{DENSITY:g}"]
    steps = span(float(row["compacted / dense"]) for row in rows)
    group = cifar.most_telling("rigl-struct")
    found = {one.method: one for one in cifar.main_variants(group)}
    names = {
        "rigl-struct": "entire channels",
        "rigl": "single weights",
        "small-dense": "small dense",
    }
    accuracies = (
        f"{words} {group.percent(found[name])} %" for name, words in names.items() if name in found
    )
    return (
        f"At density {DENSITY:g}, {_compacted()}; training steps with `CompactedTraining` take "
        f"{steps} of the dense time. This costs accuracy: {', '.join(accuracies)} "
        f"({_protocol(group)})."
    )


def live_training_conclusion() -> str:
    """The conclusion of the page on training with live weights only."""
    found = processors.steps_at_density()
    said = (
        f"At density {DENSITY:g}, full training steps on one thread in bfloat16 with `speed_up` "
        f"are {_speedup(found, BF16)} times as fast as dense steps in bfloat16, and "
        f"{_speedup(found, FP32)} times as fast as dense steps in float32 "
        f"({processors.trained_networks(found)})."
    )
    if older := processors.steps_at_density(AVX2):
        said += (
            f" On a processor {WITHOUT_AVX512}, steps in float32 with `speed_up` are "
            f"{_speedup(older, FP32, FP32)} times as fast as dense steps in float32 "
            f"({processors.trained_networks(older)})."
        )
    if found := processors.steps_at_density(INTEL):
        said += (
            " On a Xeon without AMX, where dense steps in bfloat16 are slower than in float32, "
            f"steps in bfloat16 are {_network_by_network(found, FP32)} as fast as dense steps in "
            "float32."
        )
    if found := processors.steps_at_density(AMX):
        said += (
            " On a Xeon with AMX, which multiplies dense bfloat16 matrices much faster, steps in "
            f"bfloat16 are {_network_by_network(found, BF16)} as fast as dense steps in bfloat16."
        )
    return said


def inference_conclusion() -> str:
    """The conclusion of the page on inference with live weights only."""
    said = (
        f"At density {DENSITY:g}, on one thread, models from `condense` are {_condensed(FP32)} "
        f"times as fast in float32 and {_condensed(BF16)} times as fast in bfloat16 as torch's "
        f"fastest dense implementation ({processors.condensed_networks()})."
    )
    if processors.condensed_ratios(FP32, AVX2):
        said += (
            f" On a processor {WITHOUT_AVX512}, they are {_condensed(FP32, AVX2)} times as fast in "
            f"float32 ({processors.condensed_networks(AVX2)})."
        )
    if processors.condensed_ratios(BF16, INTEL):
        said += (
            f" On a Xeon without AMX, they are {_condensed(FP32, INTEL)} times as fast in float32, "
            f"and {_condensed(BF16, INTEL)} times in bfloat16, in which dense convolutions are "
            f"slower than in float32 there ({processors.condensed_networks(INTEL)})."
        )
    if processors.condensed_ratios(BF16, AMX):
        said += (
            " On a Xeon with AMX, where dense bfloat16 is fast, they are "
            f"{_condensed(FP32, AMX)} times as fast in float32, and {_condensed(BF16, AMX)} times "
            f"in bfloat16 ({processors.condensed_networks(AMX)})."
        )
    return (
        f"{said} `condense` also times the dense implementations, and never returns a slower model "
        "than the fastest of them in the same number format."
    )


#: The first sentences of each page of results.
CONCLUSIONS = {
    "cost": cost_conclusion,
    "inference": inference_conclusion,
    "live-training": live_training_conclusion,
    "reproduction": reproduction_conclusion,
    "structured": structured_conclusion,
}


def _memory() -> str:
    entries = [entry for entry in _costs() if entry["optimizer"].startswith("adamw")]
    state = span(_bytes(entry, OURSELVES) / _bytes(entry, PLAIN) for entry in entries)
    held = (held_in_all(entry["contenders"][OURSELVES]) for entry in entries)
    whole = span(ours / _bytes(entry, PLAIN) for ours, entry in zip(held, entries, strict=True))
    return (
        f"AdamW's state takes {state} of the memory, or {whole} with masks and positions; weights "
        "and gradients stay dense tensors"
    )


def _step() -> str:
    kinds = {"AdamW": ("adamw-for-loop", "adamw-foreach"), "fused AdamW": ("adamw-fused",)}
    kinds |= {"SGD": ("sgd-for-loop", "sgd-foreach"), "fused SGD": ("sgd-fused",)}
    said = (f"{kind} {_step_times(optimizers)}" for kind, optimizers in kinds.items())
    most = max(threads(entry) for entry in _costs())
    return (
        "time of `step()` and of masking the gradients, as a multiple of the plain optimizer's "
        f"`step()`, on up to {counted(most, 'thread')}: {', '.join(said)} ({_of_cost()})"
    )


def _step_times(optimizers: Iterable[str]) -> str:
    found = (
        ordinary_step(entry["contenders"][OURSELVES])
        for entry in _costs()
        if entry["optimizer"] in optimizers
    )
    return span(ratio for ratio in found if ratio is not None)


def _training() -> str:
    found = processors.steps_at_density()
    return (
        f"`speed_up` in bf16, one thread: {_speedup(found, BF16)} times as fast as dense bf16, and "
        f"{_speedup(found, FP32)} times as fast as dense fp32; other processors below"
    )


def _speedup(records: Iterable[Record], dense: str, ours: str = BF16) -> str:
    return span(processors.speedups(records, dense, ours), 1)


def _condensed(form: str, kind: str = ORDINARY) -> str:
    return span(processors.condensed_ratios(form, kind), 1)


def _network_by_network(records: Iterable[Record], dense: str) -> str:
    """How many times as fast as dense steps in one number format, network by network."""
    found: dict[str, list[Record]] = {}
    for one in records:
        found.setdefault(one["title"].replace(", ", " with "), []).append(one)
    return " and ".join(f"{_speedup(found[name], dense)} times ({name})" for name in sorted(found))


def _inference() -> str:
    return (
        f"models from `condense`, one thread: {_condensed(FP32)} times as fast in fp32 and "
        f"{_condensed(BF16)} times as fast in bf16 as torch's fastest dense implementation; other "
        f"processors below; {_compacted()}"
    )


def _compacted() -> str:
    rows = [row for row in overview.speed_rows("inference") if row["density"] == f"{DENSITY:g}"]
    batches = sorted({int(row["batch"]) for row in rows} - {1})
    names = dict.fromkeys(WORKLOADS[row["model"]].title.replace(",", " at") for row in rows)
    most = max(int(row["threads"]) for row in rows)
    many, one = _compacted_times(rows, batches), _compacted_times(rows, [1])
    return (
        f"models whose dropped channels are removed (`compact`) take {many} of the dense time at "
        f"batch {' and '.join(map(str, batches))}, and {one} for one image, on up to "
        f"{counted(most, 'thread')} ({', '.join(names)})"
    )


def _compacted_times(rows: Iterable[dict[str, str]], batches: Collection[int]) -> str:
    times = (float(row["compacted / dense"]) for row in rows if int(row["batch"]) in batches)
    return span(times, 2)


def _accuracy() -> str:
    group = cifar.headline()[-1]
    found = {one.method: one for one in cifar.main_variants(group)}
    said = [
        f"{name} {group.percent(found[method])} %"
        for method, name in ACCURACIES.items()
        if method in found
    ]
    full = "".join(f"{phrase}; " for phrase in cifar.full_protocol_phrases())
    return f"{full}{', '.join(said)} ({_protocol(group)}){_reservation(group)}"


def _reservation(group: Group) -> str:
    """That RigL's lead over the fixed mask is within the spread, where it is."""
    found = cifar.orders(group, cifar.main_variants(group), "static")
    order = {variant.method: its_order for variant, its_order in found.items()}.get("rigl")
    if order in (None, "ahead", "behind"):
        return ""
    return "; RigL and the fixed mask are not clearly different"


def _protocol(group: Group) -> str:
    about = ", ".join(group.protocol["description"].split(", ")[:3])
    notes = ["a reduced protocol"] if group.protocol["reduced"] else []
    if len({record["run"]["seed"] for record in group.records}) == 1:
        notes.append("one seed")
    return f"{about}: {', '.join(notes)}" if notes else about


def _not_faster() -> str:
    said = [
        "forward and backward passes on a GPU, which multiplies by the zeros (expected, not "
        "measured)",
        "update steps",
    ]
    for where, records in (
        ("", [one for one in processors.steps() if one["density"] > DENSITY]),
        (" on a Xeon with AMX", processors.steps_at_density(AMX)),
    ):
        slow = [ratio for ratio in processors.speedups(records, BF16, FP32) if ratio < 1]
        if slow:
            densities = " and ".join(f"{one:g}" for one in sorted({o["density"] for o in records}))
            said.append(
                f"fp32 at density {densities}{where} ({span(slow)} times as fast as dense bf16)"
            )
    return "; ".join(said)


def _costs() -> list[Entry]:
    entries = overview.cost_entries(Results(overview.OVERHEAD), DENSITY)
    return [entry for entry in entries if entry["workload"] in NETWORKS]


def _of_cost() -> str:
    """The networks whose cost is shown."""
    return ", ".join(dict.fromkeys(MODELS[entry["workload"]].title for entry in _costs()))


def _bytes(entry: Entry, contender: str) -> int:
    return entry["contenders"][contender]["bytes"]["state"]
