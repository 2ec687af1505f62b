"""The tables of accuracies, with the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from benchmarks.cifar.report.comparison import difference, inside
from benchmarks.cifar.report.markdown import multiple, names
from benchmarks.cifar.report.ordering import Order, Pair, orders
from benchmarks.cifar.report.paper import Paper, Published
from benchmarks.cifar.report.summary import Group, Statistic, Variant
from benchmarks.common.tables import MISSING, paragraph, table

VERDICTS = {True: "yes", False: "no", None: MISSING}


def main_table(group: Group, paper: Paper | None) -> list[str]:
    """Every variant: accuracy and FLOPs, ours and the paper's.

    Under the full protocol, published variants that have not been run yet have a row too.
    """
    variants = list(group.variants)
    if paper is not None and not group.protocol["reduced"]:
        variants = sorted([*variants, *_not_run(variants, paper)], key=Variant.order)
    return accuracy_table(group, variants, paper)


def accuracy_table(
    group: Group, variants: Sequence[Variant], paper: Paper | None, *, of_table: str = "main"
) -> list[str]:
    """Accuracy and FLOPs of the variants, with the published numbers of one of the paper's tables.

    Args:
        group: The results.
        variants: The rows. Those without results have published numbers only.
        paper: What has been published for this data, if anything has.
        of_table: Which of the paper's tables.
    """
    header = ["method", "init", "density", "seeds", "test %"]
    header += [] if paper is None else [paper_column(group), "difference", "inside the spread"]
    header += ["train FLOPs"] + ([] if paper is None else ["paper"])
    header += ["test FLOPs"] + ([] if paper is None else ["paper"])
    rows = []
    for variant in variants:
        published = None if paper is None else paper.of(variant, of_table=of_table)
        rows.append(_row(group, variant, published))
    return table(header, rows)


def main_notes(group: Group, paper: Paper | None) -> list[str]:
    """What the columns mean."""
    lines = paragraph(
        "Accuracy is the share of test images classified correctly after the last epoch, mean ± "
        "sample standard deviation over the seeds. FLOPs are multiples of the full dense network's "
        "by the methods' formulas: of the whole training, with its length and with that of the run "
        "that masks came from, and of an inference. An inference of the dense network costs "
        f"{_dense_flops(group, paper)}."
    )
    if paper is None:
        return lines
    lines += paragraph(
        f"Published: {paper.protocol}; the letters name the sources at the end. A difference is "
        "ours minus the published one, and inside the spread where the two bands of mean ± "
        "deviation overlap; without a deviation on both sides nothing is said. Pruning and Lottery "
        "are published without an init: over all layers together, but for a dense first layer, as "
        "with uniform here. With ERK the first layer is pruned too."
    )
    if group.protocol["reduced"] and (missing := _not_run(list(group.variants), paper)):
        listed = ", ".join(_short(variant) for variant in missing)
        lines += paragraph(f"Published, and not run by this reduced protocol: {listed}.")
    return lines


def order_tables(group: Group, paper: Paper) -> list[str]:
    """How the methods' order compares with the paper's, one table for each density."""
    lines = []
    for order in orders(group, paper):
        lines += [f"#### Density {order.density:.3g}", ""]
        lines += order_table(group, paper, order)
        lines += order_words(order)
    return lines


def _row(group: Group, variant: Variant, published: list[Published] | None) -> list[str]:
    run = bool(group.runs(variant))
    accuracy = group.statistic(variant, "accuracy", "test") if run else None
    row = [*names(variant), str(len(accuracy.values)) if accuracy else "0"]
    row.append(MISSING if accuracy is None else accuracy.percent())
    if published is not None:
        row += [_joined(str(one) for one in published), *_differences(accuracy, published)]
    row.append(multiple(group.training_flops(variant)) if run else MISSING)
    if published is not None:
        row.append(_joined(f"{one.train_flops}x" for one in published if one.train_flops))
    row.append(multiple(group.inference_flops(variant)) if run else MISSING)
    if published is not None:
        row.append(_joined(f"{one.inference_flops}x" for one in published if one.inference_flops))
    return row


def _differences(accuracy: Statistic | None, published: list[Published]) -> list[str]:
    if accuracy is None:
        return [MISSING, MISSING]
    differences = (f"{100 * accuracy.mean - float(one.accuracy):+.2f}" for one in published)
    return [_joined(differences), _joined(VERDICTS[inside(one, accuracy)] for one in published)]


def _not_run(variants: Sequence[Variant], paper: Paper) -> list[Variant]:
    """Published variants that no result stands for."""
    ran = {row.variant for variant in variants for row in paper.of(variant)}
    return list(dict.fromkeys(row.variant for row in paper.main if row.variant not in ran))


def order_table(group: Group, paper: Paper, order: Order) -> list[str]:
    """Each method's place in the paper and here, and its distance from the dense network."""
    theirs = _dense_accuracy(paper)
    ours = order.means
    dense = next((v for v in group.variants if v.method == "dense"), None)
    rows = []
    for variant, published in order.rows:
        theirs_ahead = sum(row.accuracy > published.accuracy for _, row in order.rows)
        gap = None if dense is None else difference(group, variant, dense)
        rows.append(
            [
                *names(variant)[:2],
                str(theirs_ahead + 1),
                str(1 + sum(mean > ours[variant] for mean in ours.values())) if ours else MISSING,
                f"{published.accuracy - theirs:+}",
                MISSING if gap is None else f"{100 * gap.statistic.mean:+.2f}",
            ]
        )
    header = ["method", "init", "place in the paper", "place here"]
    header += ["points from Dense in the paper", "points from Dense here"]
    return table(header, rows)


def order_words(order: Order) -> list[str]:
    """How many pairs of methods are in the paper's order, and which are not."""
    pairs = order.pairs
    decided = [pair for pair in pairs if pair.published_claims and pair.ours_claims]
    agreeing = sum(pair.agrees for pair in decided)
    text = (
        f"Of {len(pairs)} pairs of methods that share a seed, {len(decided)} are apart beyond the "
        f"spread both in the paper and here; of these {agreeing} are in the paper's order."
    )
    if len(decided) > agreeing:
        text += f" In the other order here: {_other_order(decided)}."
    if order.means:
        text += " Places are by means over the seeds that all of them have."
    if order.tau is not None:
        text += f" Kendall's tau of the two orders is {order.tau:.2f}."
    return paragraph(text)


def _other_order(decided: Sequence[Pair]) -> str:
    """Name each method that is above others here and below them in the paper, once."""
    beaten: dict[str, list[str]] = {}
    for pair in decided:
        if not pair.agrees:
            beaten.setdefault(pair.worse.title, []).append(pair.better.title)
    return "; ".join(f"{ahead} above {', '.join(behind)}" for ahead, behind in beaten.items())


def _dense_accuracy(paper: Paper) -> Decimal:
    return next(row.accuracy for row in paper.main if row.variant.method == "dense")


def _short(variant: Variant) -> str:
    return variant.title if variant.density is None else f"{variant.title} {variant.density:.3g}"


def _joined(cells: Iterable[str]) -> str:
    return "; ".join(cells) or MISSING


def paper_column(group: Group) -> str:
    """Heading of the published accuracies."""
    return "paper %, full protocol" if group.protocol["reduced"] else "paper %"


def _dense_flops(group: Group, paper: Paper | None) -> str:
    text = f"{group.records[0]['flops']['dense_inference']:,.0f} FLOPs"
    if paper is None or group.protocol["reduced"]:
        return text
    return f"{text} (paper: {paper.dense_inference_flops})"
