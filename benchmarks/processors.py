"""How many times as fast as dense code training and inference are, by kind of processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from benchmarks import overview
from benchmarks.common.tables import MISSING, span, table_of
from benchmarks.speed import condensed
from benchmarks.speed.kernels.machine import AMX, AVX2, INTEL, ORDINARY, kind_of
from benchmarks.speed.records import Record
from benchmarks.speed.steps.figure import BF16, FP32
from benchmarks.speed.steps.report import OWN

#: The kinds of processors, as the table calls them.
KINDS = {
    ORDINARY: "AMD, AVX-512 with bf16",
    INTEL: "Xeon without AMX",
    AMX: "Xeon with AMX",
    AVX2: "AVX2 only",
}
#: The number formats of our training steps and of the dense steps that they are compared with.
TRAINING = ((BF16, BF16), (BF16, FP32), (FP32, FP32), (FP32, BF16))
SHORT = {BF16: "bf16", FP32: "fp32"}
FIRST = "times as fast as dense code, one thread"


def lines() -> list[str]:
    """The table in Markdown."""
    rows = [
        *(
            _row(f"training, {SHORT[ours]} against dense {SHORT[dense]}", _trained(ours, dense))
            for ours, dense in TRAINING
        ),
        *(
            _row(f"inference, {SHORT[form]} against dense {SHORT[form]}", _inferred(form))
            for form in condensed.FORMS
        ),
    ]
    return table_of(rows)


def notes() -> str:
    """The networks of each column, and what was not timed."""
    said = []
    for kind, words in KINDS.items():
        trained, inferred = trained_networks(steps_at_density(kind)), condensed_networks(kind)
        said.append(f"{words}: {trained}; in inference {inferred}")
    slow = [words for kind, words in KINDS.items() if _bf16_is_slow(kind)]
    if slow:
        said.append(
            f"Where dense training takes longer in bf16 than in fp32 ({', '.join(slow)}), compare "
            "with dense fp32"
        )
    return f"{'. '.join(said)}.{_not_compiled()}"


def _bf16_is_slow(kind: str) -> bool:
    """Whether all dense training steps take longer in bf16 than in fp32."""
    found = steps_at_density(kind)
    over = list(zip(speedups(found, BF16), speedups(found, FP32), strict=True))
    return bool(over) and all(bf16 > fp32 for bf16, fp32 in over)


def _row(name: str, ratios_on: Callable[[str], Iterable[float]]) -> dict[str, str]:
    found = {words: list(ratios_on(kind)) for kind, words in KINDS.items()}
    cells = {words: span(ratios, 1) if ratios else MISSING for words, ratios in found.items()}
    return {FIRST: name, **cells}


def _trained(ours: str, dense: str) -> Callable[[str], Iterable[float]]:
    return lambda kind: speedups(steps_at_density(kind), dense, ours)


def _inferred(form: str) -> Callable[[str], Iterable[float]]:
    return lambda kind: condensed_ratios(form, kind)


def steps(kind: str = ORDINARY) -> list[Record]:
    """The records of training steps on one thread."""
    return [
        one
        for one in overview.speed_records("steps")
        if one["threads"] == 1 and "plan" in one and kind_of(one) == kind
    ]


def steps_at_density(kind: str = ORDINARY) -> list[Record]:
    """The records of training steps on one thread at the density of the tables."""
    return [one for one in steps(kind) if one["density"] == overview.DENSITY]


def speedups(records: Iterable[Record], dense: str, ours: str = BF16) -> Iterator[float]:
    """How many times as fast as dense steps in one number format our steps in another are."""
    found = (one["speedup"].get(f"{OWN}{ours}", {}) for one in records)
    return (ratios[dense][0] for ratios in found if dense in ratios)


def trained_networks(records: Iterable[Record]) -> str:
    """The networks of records of training steps."""
    return ", ".join(dict.fromkeys(one["title"].partition(",")[0] for one in records))


def condensed_ratios(form: str, kind: str = ORDINARY) -> list[float]:
    """How many times as fast as the fastest dense model condensed models are."""
    found = (condensed.fastest_of(one, form) for one in _condensed(kind))
    return [dense / sparse for _, dense, sparse in filter(None, found)]


def condensed_networks(kind: str = ORDINARY) -> str:
    """The networks that were condensed and timed."""
    return _titles(_condensed(kind))


def _not_compiled() -> str:
    """A note on networks for which torch.compile was not always timed."""
    missing = [one for one in _condensed(ORDINARY) if not condensed.was_compiled(one)]
    names = _titles(missing)
    return f" Some rows of {names} were timed without torch.compile." if names else ""


def _titles(records: Iterable[Record]) -> str:
    titles = (condensed.NETWORKS[one["network"]].title for one in records)
    return ", ".join(dict.fromkeys(title.partition(",")[0] for title in titles))


def _condensed(kind: str) -> list[Record]:
    return [
        one
        for one in overview.speed_records("condensed")
        if one["density"] == overview.DENSITY
        and one["environment"]["threads"] == 1
        and kind_of(one["machine"]) == kind
    ]
