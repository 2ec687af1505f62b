"""Where sparse layers are faster than dense layers and where they are not, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.speed.kernels.implementations import INFERENCE, TRAINING
from benchmarks.speed.kernels.machine import AMX, AVX2, WITHOUT_AVX512
from benchmarks.speed.kernels.measuring import HEADLINE
from benchmarks.speed.kernels.ratios import (
    BF16,
    COMPARISONS,
    FP32,
    SHORT,
    break_even,
    layer_of,
    losers,
    passes_of,
    speedups,
)
from benchmarks.speed.kernels.runs import of_kind, ordinary, title
from benchmarks.speed.records import Record


def summary(records: Sequence[Record]) -> list[str]:
    """Where sparse layers are faster than dense layers and where they are not, in sentences."""
    found = ordinary(records)
    trained = [record for record in found if TRAINING in passes_of(record)]
    sentences = []
    for name, is_linear in (("a network's convolutions", False), ("a transformer's layers", True)):
        named = [one for one in trained if layer_of(one["layers"][0]).is_linear == is_linear]
        if named:
            sentences += _training_sentences(name, named)
    lost = {
        layer.words: None
        for record in trained
        for compared in (FP32, BF16)
        for layer in losers(record["layers"], TRAINING, compared)
    }
    shapes = len({layer_of(one).words for record in trained for one in record["layers"]})
    if lost:
        sentences.append(
            f"At density {HEADLINE:g} dense code is faster in {len(lost)} of {shapes} shapes: "
            f"{'; '.join(lost)}."
        )
    elif trained:
        sentences.append(
            f"At density {HEADLINE:g} dense code is faster in none of {shapes} shapes."
        )
    others = [
        *_avx2_sentences(of_kind(records, AVX2)),
        *_amx_sentences(of_kind(records, AMX)),
    ]
    if others:
        scope = "All this is about AMD's processors with AVX-512."
        others.insert(0, scope)
    return sentences + _inference_sentences(found) + others


def _training_sentences(name: str, records: Sequence[Record]) -> list[str]:
    fp32, bf16, mixed = (
        [speedups(one["layers"], TRAINING, compared) for one in records] for compared in COMPARISONS
    )
    return [
        f"In training at density {HEADLINE:g}, {name} are {_span(one[HEADLINE] for one in fp32)} "
        "times as fast with the kernels as in the fastest dense implementation in float32, and "
        f"{_span(one[HEADLINE] for one in bf16)} times in bfloat16.",
        f"Dense code is faster above density {_words(map(break_even, fp32))} in float32, above "
        f"{_words(map(break_even, bf16))} in bfloat16, and above {_words(map(break_even, mixed))} "
        "if dense code has bfloat16 and the kernels float32.",
    ]


def _amx_sentences(records: Sequence[Record]) -> list[str]:
    """How much is left where dense code can use AMX, network by network."""
    said = []
    for record in records:
        for what in passes_of(record):
            fp32, bf16 = (
                speedups(record["layers"], what, compared)[HEADLINE] for compared in (FP32, BF16)
            )
            said.append(
                f"{title(record)} in {what}, {fp32:.1f} times in float32 and {bf16:.1f} "
                "times in bfloat16"
            )
    if not said:
        return []
    return [
        "On a processor with AMX, which multiplies dense bfloat16 matrices much faster, the "
        f"kernels are this many times as fast as dense code: {'; '.join(said)}."
    ]


def _avx2_sentences(records: Sequence[Record]) -> list[str]:
    """How many times as fast the kernels are in float32, network by network.

    Without instructions for bfloat16, dense bfloat16 is no fair comparison.
    """
    said = [
        f"{title(record)} in {what}, {speedups(record['layers'], what, FP32)[HEADLINE]:.1f} times"
        for record in records
        for what in passes_of(record)
    ]
    if not said:
        return []
    return [
        f"On a processor {WITHOUT_AVX512}, the kernels in float32 are this many times as "
        f"fast as dense code in float32: {'; '.join(said)}."
    ]


def _inference_sentences(records: Sequence[Record]) -> list[str]:
    """Full networks that are faster with dense code at the headline's density."""
    lost: dict[str, None] = {}  # in order; a network may have been measured on many processors
    for record in records:
        slower = [
            SHORT[compared.ours]
            for compared in (FP32, BF16)
            if speedups(record["layers"], INFERENCE, compared).get(HEADLINE, 1.0) < 1
        ]
        if slower:
            lost[f"{title(record)} ({' and '.join(slower)})"] = None
    if not lost:
        return []
    return [
        f"In inference at density {HEADLINE:g} dense code is faster in these networks: "
        f"{'; '.join(lost)}."
    ]


def _span(values: Iterable[float]) -> str:
    words = sorted(f"{value:.1f}" for value in values)
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def _words(values: Iterable[str]) -> str:
    """The range of break-even densities; values such as ``> 0.5`` count only if all are such."""
    found = set(values)
    inside = {word for word in found if word[0].isdigit()} or found
    words = sorted(inside, key=lambda word: float(word.strip("<> ")))
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"
