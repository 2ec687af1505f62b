"""The gains and the costs of training at a tenth of the weights, in one line each.

README and docs open with this table; every number in it comes from the committed results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks import overview
from benchmarks.cifar import overview as cifar
from benchmarks.cifar.report.results import Group
from benchmarks.common.tables import span, table
from benchmarks.common.words import counted
from benchmarks.overhead.contenders import OURSELVES, PLAIN
from benchmarks.overhead.results import Entry, Results, threads
from benchmarks.overhead.tables import held_in_all
from benchmarks.overhead.workloads import WORKLOADS as MODELS
from benchmarks.speed import condensed
from benchmarks.speed.kernels.machine import AMX, AVX2, ORDINARY, WITHOUT_AVX512, kind_of
from benchmarks.speed.records import Record
from benchmarks.speed.steps.figure import BF16, FP32
from benchmarks.speed.steps.report import OWN
from benchmarks.speed.steps.workloads import WORKLOADS

DENSITY = overview.DENSITY
#: Networks of a common size. Small networks have tables of their own.
NETWORKS = ("wrn-22-2", "resnet-50", "gpt")
#: Processors on which less is gained, in the table.
WITH_AMX = "on a Xeon with AMX, where dense bf16 is fast"
WITH_AVX2 = f"on a processor {WITHOUT_AVX512}"
HEADER = ("", f"at density {DENSITY:g}, compared with dense training", "details")


def lines(docs: str = "") -> list[str]:
    """The table in Markdown.

    Args:
        docs: The path of the docs from the page with the table, such as ``docs/``.
    """
    found = (
        ("memory", _memory(), "what it costs", "results/cost.md"),
        ("optimizer step", _step(), "what it costs", "results/cost.md"),
        ("training, CPU", _training(), "live training", "results/live-training.md"),
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
    names = dict.fromkeys(MODELS[entry["workload"]].title for entry, _ in known)
    return (
        f"At density {DENSITY:g}, {_memory()}. The {_step()} (below 1, it is shorter). The time of "
        f"full training steps changes by {shares[0]:+.1f} to {shares[-1]:+.1f} % "
        f"({_listed(names)})."
    )


def reproduction_conclusion() -> str:
    """The conclusion of the page on accuracy."""
    group = cifar.headline()[-1]
    variants = cifar.main_variants(group)
    reduced = " Shortened training reaches no published accuracy."
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
    bf16, fp32, networks = _training_spans(_steps_at_density())
    said = (
        f"At density {DENSITY:g}, full training steps on one thread in bfloat16 with `speed_up` "
        f"are {bf16} times as fast as dense steps in bfloat16, and {fp32} times as fast as dense "
        f"steps in float32 ({networks})."
    )
    if older := _steps_at_density(AVX2):
        ratios, networks = _float32_span(older)
        said += (
            f" On a processor {WITHOUT_AVX512}, steps in float32 with `speed_up` are {ratios} "
            f"times as fast as dense steps in float32 ({networks})."
        )
    if found := _steps_at_density(AMX):
        said += (
            " On a Xeon with AMX, which multiplies dense bfloat16 matrices much faster, steps in "
            f"bfloat16 are {_network_by_network(found)} as fast as dense steps in bfloat16."
        )
    return said


def inference_conclusion() -> str:
    """The conclusion of the page on inference with live weights only."""
    return (
        f"At density {DENSITY:g}, {_condensed()}. `condense` also times the dense implementations, "
        "and never returns a slower model than the fastest of them in the same number format."
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
    kinds["SGD"] = ("sgd-for-loop", "sgd-foreach")
    said = (f"{kind} {_step_times(optimizers)}" for kind, optimizers in kinds.items())
    most = max(threads(entry) for entry in _costs())
    return (
        f"time of `step()` as a multiple of the plain optimizer's, on up to "
        f"{counted(most, 'thread')}: {', '.join(said)}"
    )


def _step_times(optimizers: Iterable[str]) -> str:
    ratios = (
        entry["contenders"][OURSELVES]["step"]["ratio"]["median"]
        for entry in _costs()
        if entry["optimizer"] in optimizers
    )
    return span(ratios)


def _training() -> str:
    bf16, fp32, networks = _training_spans(_steps_at_density())
    said = (
        f"`speed_up`, bf16, one thread: {bf16} times as fast as dense bf16, and {fp32} times as "
        f"fast as dense fp32 ({networks})"
    )
    if older := _steps_at_density(AVX2):
        ratios, networks = _float32_span(older)
        said += f"; {WITH_AVX2}, fp32 is {ratios} times as fast as dense fp32 ({networks})"
    if found := _steps_at_density(AMX):
        said += f"; {WITH_AMX}, bf16 is {_network_by_network(found)} as fast as dense bf16"
    return said


def _network_by_network(records: Iterable[Record]) -> str:
    """How many times as fast as dense steps in bfloat16, network by network."""
    found: dict[str, list[Record]] = {}
    for one in records:
        found.setdefault(one["title"].replace(", ", " with "), []).append(one)
    return " and ".join(
        f"{span(_speedups(found[name], BF16), 1)} times ({name})" for name in sorted(found)
    )


def _training_spans(steps: Sequence[Record]) -> tuple[str, str, str]:
    """How many times as fast as dense steps in bfloat16 and in float32, and the networks."""
    return span(_speedups(steps, BF16), 1), span(_speedups(steps, FP32), 1), _networks(steps)


def _float32_span(steps: Sequence[Record]) -> tuple[str, str]:
    """How many times as fast as dense steps our steps are, both in float32, and the networks."""
    return span(_speedups(steps, FP32, FP32), 1), _networks(steps)


def _networks(records: Iterable[Record]) -> str:
    return _listed(dict.fromkeys(one["title"].partition(",")[0] for one in records))


def _inference() -> str:
    return "; ".join(said for said in (_condensed(), _compacted()) if said)


def _condensed() -> str:
    """The row on condensed models, if they were measured."""
    ratios, names = _condensed_ratios()
    if len(ratios) < len(condensed.FORMS):
        return ""
    said = (
        f"models from `condense`, one thread, are {span(ratios[FP32], 1)} times as fast in float32 "
        f"and {span(ratios[BF16], 1)} times as fast in bfloat16 as torch's fastest dense "
        f"implementation that was timed ({names}{_not_compiled()})"
    )
    ratios, names = _condensed_ratios(AVX2)
    if ratios:
        said += f"; {WITH_AVX2}: {span(ratios[FP32], 1)} times in float32 ({names})"
    ratios, names = _condensed_ratios(AMX)
    if len(ratios) == len(condensed.FORMS):
        said += (
            f"; {WITH_AMX}: {span(ratios[FP32], 1)} times in float32, and {span(ratios[BF16], 1)} "
            f"times in bfloat16 ({names})"
        )
    return said


def _not_compiled() -> str:
    """A note on networks for which torch.compile was not always timed on ordinary processors."""
    found = _condensed_records()
    names = dict.fromkeys(
        condensed.NETWORKS[one["network"]].title.partition(",")[0]
        for one in found
        if not condensed.was_compiled(one)
    )
    return f"; some rows of {_listed(names)} without torch.compile" if names else ""


def _condensed_records(kind: str = ORDINARY) -> list[Record]:
    return [
        one
        for one in overview.speed_records("condensed")
        if one["density"] == DENSITY
        and one["environment"]["threads"] == 1
        and kind_of(one["machine"]) == kind
    ]


def _condensed_ratios(kind: str = ORDINARY) -> tuple[dict[str, list[float]], str]:
    """How many times as fast as dense models, by number format, and the networks."""
    found = _condensed_records(kind)
    titles = (condensed.NETWORKS[one["network"]].title for one in found)
    names = dict.fromkeys(title.partition(",")[0] for title in titles)
    ratios: dict[str, list[float]] = {}
    for form in condensed.FORMS:
        for fastest in filter(None, (condensed.fastest_of(one, form) for one in found)):
            _, dense, sparse = fastest
            ratios.setdefault(form, []).append(dense / sparse)
    return ratios, _listed(names)


def _compacted() -> str:
    rows = [
        row
        for row in overview.speed_rows("inference")
        if row["density"] == f"{DENSITY:g}" and row["batch"] != "1"
    ]
    times = span((float(row["compacted / dense"]) for row in rows), 2)
    names = dict.fromkeys(WORKLOADS[row["model"]].title.replace(",", " at") for row in rows)
    return (
        f"models whose dropped channels are removed (`compact`) take {times} of the dense time "
        f"({_listed(names)})"
    )


def _accuracy() -> str:
    group = cifar.headline()[-1]
    found = {one.method: one for one in cifar.main_variants(group)}
    said = [
        f"{name} {group.percent(found[method])} %"
        for method, name in (("rigl", "RigL"), ("dense", "dense"), ("static", "a fixed mask"))
        if method in found
    ]
    return f"{', '.join(said)} ({_protocol(group)})"


def _protocol(group: Group) -> str:
    about = ", ".join(group.protocol["description"].split(", ")[:3])
    notes = ["a reduced protocol"] if group.protocol["reduced"] else []
    if len({record["run"]["seed"] for record in group.records}) == 1:
        notes.append("one seed")
    return f"{about}: {', '.join(notes)}" if notes else about


def _not_faster() -> str:
    denser = [one for one in _steps() if one["density"] > DENSITY]
    ratios = [ratio for one in denser for ratio in _speedups([one], BF16, ours=FP32) if ratio < 1]
    slow = (
        f"; fp32 at density 0.2 compared with dense bf16 ({span(ratios, 2)} times as fast)"
        if ratios
        else ""
    )
    return (
        "forward and backward passes on a GPU, which multiplies by the zeros (expected, not "
        "measured); "
        f"update steps{slow}"
    )


def _costs() -> list[Entry]:
    entries = overview.cost_entries(Results(overview.OVERHEAD), DENSITY)
    return [entry for entry in entries if entry["workload"] in NETWORKS]


def _steps(kind: str = ORDINARY) -> list[Record]:
    return [
        one
        for one in overview.speed_records("steps")
        if one["threads"] == 1 and "plan" in one and kind_of(one) == kind
    ]


def _steps_at_density(kind: str = ORDINARY) -> list[Record]:
    return [one for one in _steps(kind) if one["density"] == DENSITY]


def _speedups(records: Iterable[Record], dense: str, ours: str = BF16) -> Iterator[float]:
    found = (one["speedup"].get(f"{OWN}{ours}", {}) for one in records)
    return (ratios[dense][0] for ratios in found if dense in ratios)


def _bytes(entry: Entry, contender: str) -> int:
    return entry["contenders"][contender]["bytes"]["state"]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
