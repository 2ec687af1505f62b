"""Tables in Markdown, one for each kind of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.overhead.contenders import AGAIN, PLAIN, REFERENCE
from benchmarks.overhead.results import Entry

#: The cadence for which the mean over ordinary and update steps is shown: the wrapper's default.
USUAL_DELTA_T = 100
NONE = "-"
MEGA = 1e6

Table = list[str]


def time_table(entries: Sequence[Entry]) -> Table:
    """Ordinary steps and updates of the optimizer alone."""
    header = ["optimizer", "contender", "step, ms", "x plain", "masking, x plain"]
    header += ["update, ms", "x plain", f"x plain {REFERENCE}", "mean, x plain"]
    header += ["density", "moved"]
    rows = [
        [
            optimizer,
            name,
            median(times["step"]["milliseconds"]),
            with_quartiles(times["step"]["ratio"]),
            NONE if name == PLAIN else with_quartiles(times["masking"]["ratio"]),
            _with_count(times["update"]["milliseconds"]),
            with_quartiles(times["update"]["ratio"]),
            with_quartiles(times["update"]["ratio_to_reference"]),
            _mean_ratio(times),
            NONE if times["density"] is None else f"{times['density']:.4f}",
            NONE if times["moved"] is None else f"{times['moved']:.2f}",
        ]
        for optimizer, name, times in _rows(entries)
    ]
    return table(header, rows)


def byte_table(entries: Sequence[Entry]) -> Table:
    """What is held between steps, and the checkpoint."""
    kinds = ("state", "index", "masks", "other")
    header = ["optimizer", "contender", *(f"{kind}, MB" for kind in kinds)]
    header += ["state + index, x plain", "all four, x plain", "masks, bytes a weight"]
    header += ["weights, MB", "checkpoint, MB", "x plain"]
    # Implementations of one optimizer mostly hold the same, and then share a row.
    rows: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        plain = entry["contenders"][PLAIN]
        for name, figures in entry["contenders"].items():
            if name in (AGAIN, REFERENCE):
                continue
            held, state = figures["bytes"], plain["bytes"]["state"]
            row = (
                name,
                *(_megabytes(held[kind]) for kind in kinds),
                _ratio(held["state"] + held["index"], state),
                _ratio(sum(held[kind] for kind in kinds), state),
                f"{held['masks'] / entry['sparse_weights']:.3f}",
                _megabytes(held["weights"]),
                _megabytes(figures["checkpoint"]),
                _ratio(figures["checkpoint"], plain["checkpoint"]),
            )
            rows.setdefault(row, []).append(entry["optimizer"])
    return table(header, [[", ".join(names), *row] for row, names in rows.items()])


def holder_table(entry: Entry, names: Sequence[str]) -> Table:
    """What is held where, of those of ``names`` that were measured."""
    plain = entry["contenders"][PLAIN]["bytes"]["state"]
    rows = []
    for name in names:
        if name not in entry["contenders"]:
            continue
        sizes = entry["contenders"][name]["bytes"]
        for holder, size in {"optimizer.state": sizes["state"], **sizes["held"]}.items():
            a_weight = f"{size / entry['sparse_weights']:.3f}"
            rows.append([name, f"`{holder}`", _megabytes(size), a_weight, _ratio(size, plain)])
    header = ["contender", "held as", "MB", "bytes a weight of sparse layers", "x plain state"]
    return table(header, rows)


def training_table(entries: Sequence[Entry], steps: Mapping[str, Entry]) -> Table:
    """Whole training steps.

    Args:
        entries: Figures of training steps.
        steps: Figures of the optimizer alone, by optimizer, for the time of masking.
    """
    header = ["optimizer", "contender", "whole, ms", "x plain", "forward and backward, ms"]
    header += ["x plain", "step, ms", "x plain", "`step()` beyond plain's, share of whole"]
    header += ["with masking"]
    rows = [
        [
            optimizer,
            name,
            median(times["whole"]["milliseconds"]),
            with_quartiles(times["whole"]["ratio"]),
            median(times["passes"]["milliseconds"]),
            with_quartiles(times["passes"]["ratio"]),
            median(times["step"]["milliseconds"]),
            with_quartiles(times["step"]["ratio"]),
            NONE if name == PLAIN else with_quartiles(times["beyond"], digits=4),
            _share(entry, steps.get(optimizer), name),
        ]
        for entry in entries
        for optimizer, name, times in _rows([entry])
    ]
    return table(header, rows)


def share_of_training(training: Entry, steps: Entry, name: str) -> float | None:
    """Return the time of masking and of ``step()`` beyond plain's, as a share of the plain whole.

    ``step()`` is taken from within training steps. Masking, which hides in the backward pass there,
    is taken from where nothing else is timed with it, if that was on the same processor.
    """
    if name == PLAIN or name not in steps["contenders"]:
        return None
    if processor(training) != processor(steps):
        return None
    masking = steps["contenders"][name]["masking"]["milliseconds"]
    if masking is None:
        return None
    whole = training["contenders"][PLAIN]["whole"]["milliseconds"]["median"]
    return float(training["contenders"][name]["beyond"]["median"] + masking["median"] / whole)


def extras_table(construction: Sequence[Entry], memory: Sequence[Entry]) -> Table:
    """Peaks of memory, and construction."""
    header = ["optimizer", "contender", "peak of a step, MB", "peak of an update, MB"]
    header += ["construction, ms"]
    built = {
        (optimizer, name): median(milliseconds)
        for optimizer, name, milliseconds in _rows(construction)
    }
    peaks = {(optimizer, name): peak or {} for optimizer, name, peak in _rows(memory)}
    rows = [
        [
            *key,
            *(
                _megabytes(peaks[key][phase]) if phase in peaks.get(key, {}) else NONE
                for phase in ("step", "update")
            ),
            built.get(key, NONE),
        ]
        for key in dict.fromkeys((*peaks, *built))
        if key[1] != AGAIN
    ]
    return table(header, rows)


def median(summary: Mapping[str, float] | None) -> str:
    """The median, in three digits."""
    return NONE if summary is None else f"{summary['median']:.3g}"


def with_quartiles(summary: Mapping[str, float] | None, digits: int = 3) -> str:
    """The median and [the quartiles]."""
    if summary is None:
        return NONE
    middle, q1, q3 = (f"{summary[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{middle} [{q1}, {q3}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The lines of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def processor(entry: Entry) -> str:
    """What an entry was measured on."""
    return str(entry["made_with"]["processor"])


def measured_on(entries: Sequence[Entry]) -> list[str]:
    """What figures were measured on, as a paragraph; on several processors, which on which."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(processor(entry), []).append(entry["optimizer"])
    if len(names) == 1:
        return [f"On {next(iter(names))}.", ""]
    each = (f"{', '.join(dict.fromkeys(those))} on {name}" for name, those in names.items())
    return [f"Measured with {'; '.join(each)}.", ""]


def all_in(times: Mapping[str, Any]) -> float | None:
    """Return an ordinary step with its masking, as a multiple of plain ``step()``."""
    if times["step"]["ratio"] is None:
        return None
    return float(times["step"]["ratio"]["median"] + times["masking"]["ratio"]["median"])


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[str, str, Any]]:
    for entry in entries:
        for name, figures in entry["contenders"].items():
            if name != REFERENCE:
                yield entry["optimizer"], name, figures


def _share(training: Entry, steps: Entry | None, name: str) -> str:
    share = None if steps is None else share_of_training(training, steps, name)
    return NONE if share is None else f"{share:+.4f}"


def _with_count(summary: Mapping[str, float] | None) -> str:
    return NONE if summary is None else f"{median(summary)} (of {summary['count']})"


def _mean_ratio(times: Mapping[str, Any]) -> str:
    update, ordinary = times["update"]["ratio"], all_in(times)
    if update is None or ordinary is None:
        return NONE
    return f"{((USUAL_DELTA_T - 1) * ordinary + update['median']) / USUAL_DELTA_T:.3f}"


def _megabytes(count: int) -> str:
    return f"{count / MEGA:.2f}"


def _ratio(count: int, plain: int) -> str:
    return f"{count / plain:.3f}"
