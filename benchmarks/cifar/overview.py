"""The CIFAR results in short: one table, and what may be said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cifar.records.results import read_results
from benchmarks.cifar.report.comparison import Difference, Spread, difference
from benchmarks.cifar.report.differences import order_of
from benchmarks.cifar.report.markdown import names
from benchmarks.cifar.report.paper import Paper, published_datasets
from benchmarks.cifar.report.summary import Group, Variant, group_by_protocol, title
from benchmarks.common.tables import MISSING, table

RESULTS = Path(__file__).parent / "results"
FILE = "results.jsonl"

#: What differences in the short table are from: the mask that never moves.
REFERENCE = "static"


def folders(results: Path = RESULTS) -> list[Path]:
    """Every folder with results, the one with the most runs first."""
    found = {path.parent: len(read_results(path)) for path in results.glob(f"*/{FILE}")}
    return sorted(found, key=lambda folder: (-found[folder], folder.name))


def groups(folder: Path) -> list[Group]:
    """The protocols of a folder's results, each with all its runs."""
    return group_by_protocol(read_results(folder / FILE))


def headline(results: Path = RESULTS) -> list[Group]:
    """What to show first: every full protocol, and the reduced one with the most runs."""
    found = [group for folder in folders(results) for group in groups(folder)]
    reduced = [group for group in found if group.protocol["reduced"]]
    most = sorted(reduced, key=lambda group: -len(group.records))[:1]
    return [*(group for group in found if not group.protocol["reduced"]), *most]


def protocol(group: Group) -> str:
    """What was run, and whether that is the paper's protocol."""
    reduced = group.protocol["reduced"]
    kind = "The full protocol"
    if reduced:
        kind = f"A **reduced protocol** ({group.protocol['summary']})"
    name, about = group.protocol["name"], group.protocol["description"]
    text = f"{kind}, called `{name}`: {about}; {len(group.records)} runs."
    return f"{text} Not to be compared with published numbers." if reduced else text


def paper_of(group: Group) -> Paper | None:
    """What has been published for the group's data, if anything has."""
    return Paper(group.dataset) if group.dataset in published_datasets() else None


def machines(group: Group) -> str:
    """What the runs were made on, in a phrase."""
    about = [record["environment"] for record in group.records]
    found = (
        f"{one['processor']}, {one['threads']} thread{'s' * (one['threads'] != 1)} a run, on "
        f"{one['device']}, torch {one['torch']}"
        for one in about
    )
    return "; ".join(dict.fromkeys(found))


def accuracy_table(group: Group, variants: Sequence[Variant] | None = None) -> list[str]:
    """Accuracy and FLOPs, the best of each density first.

    Under the full protocol the published accuracies stand beside ours.

    Args:
        group: The results.
        variants: The rows; all by default.
    """
    paper = None if group.protocol["reduced"] else paper_of(group)
    shown = list(group.variants) if variants is None else variants
    spread = Spread(group)
    rows = []
    for variant in sorted(shown, key=lambda one: _place(group, one)):
        accuracy = group.statistic(variant, "accuracy", "test")
        train = group.training_flops(variant)
        rows.append(
            [
                *names(variant),
                str(len(accuracy.values)),
                accuracy.percent(),
                *([] if paper is None else [_published(paper, variant)]),
                _points(_from(group, variant, REFERENCE, shown), spread),
                MISSING if train is None else f"{train:.3f}",
                f"{group.inference_flops(variant):.3f}",
            ]
        )
    header = ["method", "init", "density", "seeds", "test accuracy, %"]
    header += [] if paper is None else ["published"]
    return table([*header, "minus static", "training FLOPs", "inference FLOPs"], rows)


#: What the columns of the table are.
COLUMNS = (
    "Accuracy is mean ± sample standard deviation over the seeds, after the last epoch. "
    "Differences from static are paired by seed: their mean ± sample standard deviation, bold "
    "where the mean is beyond the half width of its 95 % interval, which the complete report has. "
    "FLOPs are multiples of the dense network's."
)


ORDERS = {"ahead": "Ahead of", "behind": "Behind", "open": "Not told apart from"}


def main_variants(group: Group) -> list[Variant]:
    """The variants at the init and density with the most runs of it, and those without an init."""
    runs: dict[tuple[str | None, float | None], int] = {}
    for variant, by_seed in group.variants.items():
        if variant.init is not None:
            place = (variant.init, variant.density)
            runs[place] = runs.get(place, 0) + len(by_seed)
    init, density = max(runs, key=lambda place: runs[place], default=(None, None))
    return [
        variant
        for variant in group.variants
        if variant.density in (None, density) and variant.init in (None, init)
    ]


def order_sentences(
    group: Group, variants: Sequence[Variant], reference: str = REFERENCE
) -> Iterator[str]:
    """Who is ahead of a method and who is behind it, as far as the spread lets that be said.

    Args:
        group: The results.
        variants: Who is compared with the method; those without a run of a common seed are not.
        reference: The method.
    """
    name = title(reference)
    spread = Spread(group)
    if spread.deviation is None:
        yield f"A single seed does not tell the methods from {name}."
        return
    found = [one for variant in variants if (one := _from(group, variant, reference, variants))]
    for order, words in ORDERS.items():
        chosen = [title(one.variant.method) for one in found if order_of(one, spread) == order]
        if chosen:
            yield f"{words} {name}: {', '.join(chosen)}."


def _place(group: Group, variant: Variant) -> tuple[float, float]:
    density = -1.0 if variant.density is None else variant.density
    return density, -group.statistic(variant, "accuracy", "test").mean


def _from(
    group: Group, variant: Variant, reference: str, among: Sequence[Variant]
) -> Difference | None:
    """The paired difference from the one of a method at the same density and init.

    A variant without an init is compared if there is one such among the variants.
    """
    found = [
        other
        for other in among
        if other.method == reference
        and other.density == variant.density
        and variant.init in (None, other.init)
    ]
    return difference(group, variant, found[0]) if len(found) == 1 else None


def _points(found: Difference | None, spread: Spread) -> str:
    if found is None:
        return MISSING
    text = found.statistic.percent(sign=True)
    return f"**{text}**" if spread.claims(found) else text


def _published(paper: Paper, variant: Variant) -> str:
    return "; ".join(str(one) for one in paper.of(variant)) or MISSING
