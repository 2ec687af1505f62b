"""The report on all results in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.common.environment import in_words
from benchmarks.common.tables import MISSING, paragraph, span, table_of
from benchmarks.common.words import counted
from benchmarks.structured.inference import SAME_NETWORK, inference_settings
from benchmarks.structured.models import HEAD_DIM
from benchmarks.structured.protocol import MEANING, METHODS, run_settings
from benchmarks.structured.records import Record, fastest_epoch, hardware_of, read_alike
from benchmarks.structured.timing import MODELS, shared_settings

#: Steps from one mask update to the next, of the average that is reported.
DELTA_T = 100


def report_lines(folder: Path) -> list[str]:
    """The lines of the report.

    Raises:
        ResultsError: if results of one table were made with different options.
    """
    lines = ["# Full neurons and heads", ""]
    times = read_alike(folder, "time", shared_settings)
    runs = read_alike(folder, "accuracy", run_settings)
    if times:
        lines += time_lines(times)
    if runs:
        lines += accuracy_lines(runs, read_alike(folder, "inference", inference_settings))
    return lines


def time_lines(records: Sequence[Record]) -> list[str]:
    """Tables of training steps and of inference."""
    explanation = (
        "Times are medians of calls in turn, in a new random order each round, in one process. "
        "Each contender has its faster precision of float32 and bfloat16 (bfloat16 where the "
        "processor has instructions for it). *Density* is the share of neurons and heads that is "
        "live in each block. *Compacted* is `CompactedTraining`, on "
        f"average over {DELTA_T} steps with one mask update, or in inference the model that "
        "`compact` returns. *By hand* is a model that was built in the smaller shapes, with a "
        "plain optimizer."
    )
    lines = ["## Time", "", *paragraph(explanation), *_where(records)]
    for phase in ("training", "inference"):
        ordered = sorted(records, key=lambda one: (MODELS.index(one["model"]), -one["density"]))
        rows = [time_row(record, phase) for record in ordered]
        lines += [f"### {phase.capitalize()}", "", *table_of(rows)]
    return lines


def time_row(record: Record, phase: str) -> dict[str, str]:
    """The cells of one model at one density by their column."""
    dense, compacted, by_hand = fastest_times(record, phase)
    return {
        "model": record["model"],
        "density": str(record["density"]),
        "device": record["environment"]["device"],
        "batch": str(record["batch"]),
        "dense, ms": f"{dense:.1f}",
        "compacted, ms": f"{compacted:.1f}",
        "by hand, ms": f"{by_hand:.1f}",
        "compacted / dense": f"{compacted / dense:.3f}",
        "compacted / by hand": f"{compacted / by_hand:.3f}",
    }


def fastest_times(record: Record, phase: str) -> tuple[float, float, float]:
    """Milliseconds of the dense model, of the compacted one, and of the one made by hand."""
    fastest = fastest_of(average(record[phase]))
    return fastest["dense"], fastest["compacted"], fastest["by hand"]


def short_time_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The range over the models of each ratio of times, by its column; a row for each density."""
    densities = sorted({record["density"] for record in records}, reverse=True)
    return [_ranges([one for one in records if one["density"] == each]) for each in densities]


def _ranges(records: Sequence[Record]) -> dict[str, str]:
    cells = {"density": str(records[0]["density"])}
    for phase in ("training", "inference"):
        times = [fastest_times(record, phase) for record in records]
        cells[f"{phase}, compacted / dense"] = span(one / dense for dense, one, _ in times)
        cells[f"{phase}, compacted / by hand"] = span(one / by_hand for _, one, by_hand in times)
    return cells


def average(times: Mapping[str, float]) -> dict[str, float]:
    """Mean training times, with the update in proportion; inference times are unchanged."""
    found = {name: time for name, time in times.items() if "pair" not in name}
    for name, pair in times.items():
        contender, _, precision = name.partition(" pair, ")
        if precision:
            step = times[f"{contender}, {precision}"]
            found[f"{contender}, {precision}"] = (pair - step + (DELTA_T - 1) * step) / DELTA_T
    return found


def fastest_of(times: Mapping[str, float]) -> dict[str, float]:
    """The time of each contender in its fastest precision."""
    found: dict[str, float] = {}
    for name, time in times.items():
        contender = name.partition(", ")[0]
        found[contender] = min(time, found.get(contender, time))
    return found


def accuracy_lines(records: Sequence[Record], inference: Sequence[Record]) -> list[str]:
    """How the networks were trained, and a row for each method."""
    options = records[0]["options"]
    what = "CIFAR-10" if records[0]["data"] == "cifar10" else "scikit-learn's digits"
    on_cpu = records[0]["environment"]["device"] == "cpu"
    explanation = (
        f"A vision transformer {options['width']} wide, {options['depth']} blocks, heads of "
        f"{HEAD_DIM}, patches of {options['patch']} pixels, on {what}: batches of "
        f"{options['batch_size']}, AdamW, a cosine after a warm-up, crops and mirroring, "
        f"{'float32' if on_cpu else 'bfloat16 autocast'}. Density {options['density']} of neurons "
        f"and heads, {options['weights']} of single weights. Accuracy is of all test images after "
        "the last epoch: mean and standard deviation over the seeds. Training time is the time "
        "of the fastest epoch of all seeds, times the number of epochs; other jobs slowed some "
        "epochs. Times are compared on the same hardware."
    )
    lines = ["## Accuracy", "", *paragraph(explanation), *_where(records)]
    lines += [f"- `{name}`: {MEANING[name]}." for name in METHODS]
    lines += ["", *table_of(accuracy_rows(records, inference))]
    if inference:
        lines += paragraph(
            f"Inference time is for {inference[0]['batch']} images in float32, of the model that "
            "`condense` returns (without `torch.compile`). The networks have the widths and "
            "densities of the trained ones, and random weights. The time is a mean over the seeds; "
            "a cell says how many seeds were timed if they are fewer than the runs."
        )
        lines += _where(inference)
    return lines


def accuracy_rows(records: Sequence[Record], inference: Sequence[Record]) -> list[dict[str, str]]:
    """A row for each method: means over seeds, and the deviation of accuracies."""
    grouped = {name: [one for one in records if one["method"] == name] for name in METHODS}
    return [accuracy_row(runs, grouped["dense"], inference) for runs in grouped.values() if runs]


def accuracy_row(
    runs: Sequence[Record], dense: Sequence[Record], inference: Sequence[Record]
) -> dict[str, str]:
    """The cells of one method by their column."""
    name = runs[0]["method"]
    accuracies = [100 * run["accuracy"] for run in runs]
    spread = f" ± {stdev(accuracies):.2f}" if len(runs) > 1 else ""
    smaller = [run.get("compacted_parameters", run["parameters"]) for run in runs]
    return {
        "method": f"`{name}`",
        "runs": str(len(runs)),
        "epochs": span((len(run["epochs"]) for run in runs), digits=0),
        "accuracy, %": f"{fmean(accuracies):.2f}{spread}",
        "training time / dense": _mean(_training_shares(runs, dense)),
        "inference time / dense": _inference_cell(runs, inference),
        "parameters, zeros included": f"{fmean(smaller) / 1e6:.2f} M",
        "weights ever live": _ever(runs),
    }


def _training_shares(runs: Sequence[Record], dense: Sequence[Record]) -> list[float]:
    """The training time, divided by the dense network's, on each hardware that has both."""
    times, base = _training_times(runs), _training_times(dense)
    return [time / base[hardware] for hardware, time in times.items() if hardware in base]


def _training_times(runs: Sequence[Record]) -> dict[tuple[str, str, int], float]:
    """The training time of a run, by hardware."""
    if not runs:
        return {}
    epochs = fmean(len(run["epochs"]) for run in runs)
    return {
        hardware: epochs * fastest_epoch(run for run in runs if hardware_of(run) == hardware)
        for hardware in dict.fromkeys(map(hardware_of, runs))
    }


def _inference_shares(method: str, inference: Sequence[Record]) -> list[float]:
    name = SAME_NETWORK.get(method, method)
    times = [record["milliseconds"] for record in inference]
    return [one[name] / one["dense"] for one in times if {name, "dense"} <= set(one)]


def _inference_cell(runs: Sequence[Record], inference: Sequence[Record]) -> str:
    """The mean over the seeds, and the number of seeds if they are fewer than the runs."""
    shares = _inference_shares(runs[0]["method"], inference)
    is_of_all = not shares or len(shares) >= len(runs)
    return _mean(shares) + ("" if is_of_all else f" ({counted(len(shares), 'seed')})")


def _mean(shares: Sequence[float]) -> str:
    return f"{fmean(shares):.2f}" if shares else MISSING


def _ever(runs: Sequence[Record]) -> str:
    if not runs[0].get("ever"):
        return MISSING
    started, ever = (
        fmean(share for run in runs for share in run[which].values()) for which in ("live", "ever")
    )
    return f"{started:.0%} -> {ever:.0%}"


def _where(records: Sequence[Record]) -> list[str]:
    places = dict.fromkeys(in_words(record["environment"]) for record in records)
    return paragraph("Measured with " + "; ".join(places) + ".")
