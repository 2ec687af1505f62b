"""The CIFAR results in short: one table, and the statements that it supports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cifar.records import read_results
from benchmarks.cifar.report.accuracy import joined
from benchmarks.cifar.report.paper import paper_of
from benchmarks.cifar.report.results import Group, Variant, group_by_protocol
from benchmarks.cifar.report.stats import Difference, difference
from benchmarks.cifar.report.texts import title
from benchmarks.common.environment import machines
from benchmarks.common.tables import MISSING, table_of
from benchmarks.common.words import counted

RESULTS = Path(__file__).parent / "results"
FILE = "results.jsonl"
#: The methods with which others are compared. The first, static, is the reference of the table.
REFERENCES = ("static", "rigl")
ORDERS = {
    "ahead": "Ahead of",
    "behind": "Behind",
    "open": "Not clearly different from",
    "one seed": "One seed is too few to compare with",
}
#: What the columns of the table are.
COLUMNS = (
    "Accuracy is mean ± sample standard deviation over the seeds, after the last epoch. "
    "Differences from static are paired by seed, and shown as mean ± sample standard deviation. "
    "They are bold if the mean is larger than the half width of its 95 % interval, which is in the "
    "complete report. FLOPs are multiples of the dense network's FLOPs."
)


def folders(results: Path = RESULTS) -> list[Path]:
    """Every folder with results, the one with the most runs first."""
    found = {path.parent: len(read_results(path)) for path in results.glob(f"*/{FILE}")}
    return sorted(found, key=lambda folder: (-found[folder], folder.name))


def groups(folder: Path) -> list[Group]:
    """The protocols of a folder's results, each with all its runs."""
    return group_by_protocol(read_results(folder / FILE))


def headline(results: Path = RESULTS) -> list[Group]:
    """The groups to show first: all full protocols, and the most informative reduced protocol."""
    found = [group for folder in folders(results) for group in groups(folder)]
    reduced = [group for group in found if group.protocol["reduced"]]
    most = sorted(reduced, key=_telling, reverse=True)[:1]
    return [*(group for group in found if not group.protocol["reduced"]), *most]


def most_telling(method: str, results: Path = RESULTS) -> Group:
    """The most informative protocol with runs of a method.

    Raises:
        LookupError: If no run of the method is among the results.
    """
    found = [
        group
        for folder in folders(results)
        for group in groups(folder)
        if any(variant.method == method for variant in group.variants)
    ]
    if not found:
        raise LookupError(f"no run of method={method!r} is among the results in {results}")
    return max(found, key=_telling)


def groups_with(methods: Sequence[str], results: Path = RESULTS) -> list[Group]:
    """The most informative protocol of each method, without repetition.

    ``methods`` are names or titles. Methods without a run are left out.
    """
    found: dict[str, Group] = {}
    for method in known_methods(results):
        if is_named(method, methods):
            group = most_telling(method, results)
            found.setdefault(group.protocol["label"], group)
    return sorted(found.values(), key=_telling, reverse=True)


def is_named(method: str, names: Sequence[str]) -> bool:
    """Whether the name or the title of a method is among some names."""
    return not {method, title(method)}.isdisjoint(names)


def known_methods(results: Path = RESULTS) -> list[str]:
    """Every method that has a run."""
    found = [group for folder in folders(results) for group in groups(folder)]
    return sorted({variant.method for group in found for variant in group.variants})


def _telling(group: Group) -> tuple[bool, bool, bool, int]:
    """A protocol's rank: has the dense network, is full, shortens a full one, has most runs."""
    is_full = not group.protocol["reduced"]
    is_shortened = group.protocol.get("full_steps") is not None
    return group.dense() is not None, is_full, is_shortened, len(group.records)


def full_protocol_phrases(results: Path = RESULTS) -> Iterator[str]:
    """The accuracy of each variant by a full protocol, and the published accuracy."""
    for group in headline(results):
        paper = paper_of(group)
        if group.protocol["reduced"] or paper is None:
            continue
        for variant in group.variants:
            about = [
                f"{group.settings['training']['epochs']} epochs",
                counted(len(group.of(variant)), "seed"),
                *(f"published: {one.percent} %" for one in paper.of(variant)[:1]),
            ]
            yield (
                f"{variant.title} {group.percent(variant)} % by the full protocol "
                f"({', '.join(about)})"
            )


def protocol(group: Group) -> str:
    """The protocol and its runs, and whether it is the paper's protocol."""
    about, runs = group.protocol, counted(len(group.records), "run")
    kind, warning = "The full protocol", ""
    if about["reduced"]:
        kind = f"A **reduced protocol** ({about['summary']})"
        warning = " Do not compare it with published numbers."
    made = machines(record["environment"] for record in group.records)
    name = f"called `{about['name']}`: {about['description']}"
    return f"{kind}, {name}; {runs}.{warning} Made on {made}."


def accuracy_table(group: Group, variants: Sequence[Variant] | None = None) -> list[str]:
    """Accuracy and FLOPs, the best of each density first.

    Under the full protocol the published accuracies stand beside ours.
    """
    paper, rows = None if group.protocol["reduced"] else paper_of(group), []
    shown = list(group.variants) if variants is None else variants
    best_first = sorted(shown, key=lambda one: -group.mean(one, "accuracy.test"))
    for variant in sorted(best_first, key=lambda one: one.density or -1.0):
        found, train = _from(group, variant, REFERENCES[0], shown), group.training_flops(variant)
        bold = "**" if found is not None and found.is_claimed else ""
        row = variant.cells | {"seeds": str(len(group.of(variant)))}
        row["test accuracy, %"] = group.percent(variant)
        if paper is not None:
            row["published"] = joined(paper.of(variant))
        row["minus static"] = MISSING if found is None else f"{bold}{found}{bold}"
        row["training FLOPs"] = MISSING if train is None else f"{train:.3f}"
        rows.append(row | {"inference FLOPs": f"{group.inference_flops(variant):.3f}"})
    return table_of(rows)


def main_variants(group: Group) -> list[Variant]:
    """The variants at the init and density with the most runs, and the variants without an init."""
    runs: Counter[tuple[str | None, float | None]] = Counter()
    for variant in group.variants:
        if variant.init is not None:
            runs[variant.init, variant.density] += len(group.of(variant))
    ((init, density), _), *_ = runs.most_common(1) or [((None, None), 0)]
    return [v for v in group.variants if v.density in (None, density) and v.init in (None, init)]


def order_sentences(group: Group, variants: Sequence[Variant]) -> Iterator[str]:
    """The methods ahead of each reference and behind it, where the spread allows a statement."""
    if group.deviation is None:
        yield "A single seed does not tell the methods apart."
        return
    for reference in REFERENCES:
        found = orders(group, variants, reference)
        for order, words in ORDERS.items():
            chosen = [title(one.method) for one, its_order in found.items() if its_order == order]
            if chosen:
                yield f"{words} {title(reference)}: {', '.join(chosen)}."


def orders(group: Group, variants: Sequence[Variant], reference: str) -> dict[Variant, str]:
    """The order of each variant and the ``reference`` method, a key of `ORDERS`."""
    found = (_from(group, variant, reference, variants) for variant in variants)
    return {
        one.variant: one.order if len(one.by_seed) > 1 else "one seed"
        for one in found
        if one is not None
    }


def _from(
    group: Group, variant: Variant, reference: str, among: Sequence[Variant]
) -> Difference | None:
    """The paired difference from the ``reference`` method at the same density and init.

    A variant without an init is compared if exactly one variant of the reference has its density.
    """
    found = [
        other
        for other in among
        if (other.method, other.density) == (reference, variant.density)
        and variant.init in (None, other.init)
    ]
    return difference(group, variant, found[0]) if len(found) == 1 else None
