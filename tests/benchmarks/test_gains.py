"""The table of gains agrees with the results files, which these tests read on their own."""

import json
from functools import cache
from pathlib import Path

import pytest

from benchmarks import gains, processors
from benchmarks.cifar import overview

ROOT = Path(__file__).parents[2]
SPEED = ROOT / "benchmarks" / "speed" / "results"
OVERHEAD = ROOT / "benchmarks" / "overhead" / "results" / "results.json"


# All of them read every result.
gains_lines, processors_lines = cache(gains.lines), cache(processors.lines)
processors_notes = cache(processors.notes)


@cache
def conclusion(page):
    return gains.CONCLUSIONS[page]()


def cells(name):
    (line,) = (one for one in gains_lines() if one.startswith(f"| {name} |"))
    return line


def processor(record):
    flags = record["machine"]["flags"]
    if "amx_bf16" in flags:
        return "AMX"
    if "avx512f" not in flags:
        return "AVX2 only"
    return "Intel" if record["machine"]["processor"].startswith("Intel") else "ordinary"


@cache
def all_steps():
    return [json.loads(path.read_text()) for path in SPEED.glob("steps-*.json")]


def steps(kind):
    """The records of steps on one thread at density 0.1, on one kind of processor."""
    return [
        one
        for one in all_steps()
        if one["threads"] == 1 and one["density"] == 0.1 and processor(one) == kind
    ]


def test_memory_row_has_the_range_over_the_networks():
    # Entries that were measured before have the contender's former name.
    text = OVERHEAD.read_text().replace("sparseopt, compact", "sparseopt, live")
    found = [
        entry["contenders"]
        for entry in json.loads(text)["entries"]
        if entry["figures"] == "steps"
        and entry["density"] == 0.1
        and entry["workload"] in ("wrn-22-2", "resnet-50", "gpt")
        and entry["optimizer"].startswith("adamw")
    ]
    ratios = [
        one["sparseopt, live"]["bytes"]["state"] / one["plain"]["bytes"]["state"] for one in found
    ]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of the memory" in cells("memory")


def test_step_row_has_the_range_of_step_and_masking():
    text = OVERHEAD.read_text().replace("sparseopt, compact", "sparseopt, live")
    found = [
        entry["contenders"]["sparseopt, live"]
        for entry in json.loads(text)["entries"]
        if entry["figures"] == "steps"
        and entry["density"] == 0.1
        and entry["workload"] in ("wrn-22-2", "resnet-50", "gpt")
        and entry["optimizer"] == "adamw-fused"
    ]
    ratios = [sum(one[part]["ratio"]["median"] for part in ("step", "masking")) for one in found]
    assert f"fused AdamW {min(ratios):.2f} to {max(ratios):.2f}" in cells("optimizer step")


def range_of(ratios):
    """The cell of a range, or of a number that all of them round to."""
    return " to ".join(dict.fromkeys(f"{one(ratios):.1f}" for one in (min, max)))


def by_processor(row):
    """The cells of a row of the table by processor, by the processor's heading."""
    header, _, *rows, _ = processors_lines()
    (line,) = (one for one in rows if one.startswith(f"| {row} |"))
    names, found = ([cell.strip() for cell in one.split("|")[2:-1]] for one in (header, line))
    return dict(zip(names, found, strict=True))


#: The kinds of processors, as the table calls them.
KINDS = {
    "ordinary": "AMD, AVX-512 with bf16",
    "Intel": "Xeon without AMX",
    "AMX": "Xeon with AMX",
    "AVX2 only": "AVX2 only",
}
FORMS = {"bf16": "bfloat16", "fp32": "float32"}


@pytest.mark.parametrize("ours", FORMS)
@pytest.mark.parametrize("dense", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_row_has_the_range_of_the_speed_ups(ours, dense, kind):
    found = (one["speedup"].get(f"speed_up, {FORMS[ours]}", {}) for one in steps(kind))
    ratios = [one[FORMS[dense]][0] for one in found if FORMS[dense] in one]
    cell = by_processor(f"training, {ours} against dense {dense}")[KINDS[kind]]
    assert cell == (range_of(ratios) if ratios else "-")
    if (ours, dense, kind) == ("bf16", "bf16", "ordinary"):
        assert f"one thread: {cell} times" in cells("training, CPU")


@pytest.mark.parametrize(("kind", "dense"), [("AMX", "bfloat16"), ("Intel", "float32")])
def test_conclusion_has_the_gain_over_the_faster_dense_steps_of_a_xeon(kind, dense):
    found = {}
    for one in steps(kind):
        times = one["milliseconds"]
        assert times[f"dense, {dense}"] == min(times["dense, bfloat16"], times["dense, float32"])
        ratio = one["speedup"]["speed_up, bfloat16"][dense][0]
        found.setdefault(one["title"], []).append(ratio)
    assert {"WRN-22-2", "WRN-22-2, dropout 0.3"} <= found.keys()
    for title, ratios in found.items():
        said = f"{range_of(ratios)} times ({title.replace(', ', ' with ')})"
        assert said in conclusion("live-training")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_row_has_the_range_of_the_ratios(form, kind):
    def ratios():
        for path in SPEED.glob("condensed-*.json"):
            one = json.loads(path.read_text())
            if (one["density"], one["environment"]["threads"]) != (0.1, 1):
                continue
            if processor(one["machine"]) != kind:
                continue
            times = {
                name: quartiles[1]
                for name, quartiles in one["milliseconds"].items()
                if name.endswith(FORMS[form])
            }
            if times:
                dense = min(time for name, time in times.items() if not name.startswith("sparse"))
                yield dense / min(t for name, t in times.items() if name.startswith("sparse"))

    found = list(ratios())
    cell = by_processor(f"inference, {form} against dense {form}")[KINDS[kind]]
    assert cell == (range_of(found) if found else "-")
    if found:
        assert f"{cell} times" in conclusion("inference")
    if found and kind == "ordinary":
        assert f"{cell} times as fast in {form}" in cells("inference, CPU")


@pytest.mark.parametrize("kind", KINDS)
def test_notes_name_the_networks_of_each_column(kind):
    titles = {one["title"].partition(",")[0] for one in steps(kind)}
    assert titles
    (said,) = (one for one in processors_notes().split(". ") if one.startswith(KINDS[kind]))
    trained, _, inferred = said.partition("; in inference ")
    assert all(title in trained for title in titles)
    assert "GPT-2 small" in inferred


@pytest.mark.parametrize("kind", KINDS)
def test_notes_warn_of_processors_on_which_dense_bf16_is_slower_than_dense_fp32(kind):
    times = [one["milliseconds"] for one in steps(kind)]
    both = [one for one in times if "speed_up, bfloat16" in one]
    slow = bool(both) and all(one["dense, bfloat16"] > one["dense, float32"] for one in both)
    _, _, warning = processors_notes().partition("longer in bf16 than in fp32 (")
    assert (KINDS[kind] in warning.partition(")")[0]) == slow


def test_accuracy_row_claims_no_lead_within_the_spread():
    (group,) = (one for one in overview.headline() if one.protocol["name"] == "tenth")
    found = overview.orders(group, overview.main_variants(group), "static")
    (order,) = (order for variant, order in found.items() if variant.method == "rigl")
    warned = "; RigL and the fixed mask are not clearly different" in cells("accuracy")
    assert warned == (order not in ("ahead", "behind"))


def test_links_are_found_from_where_the_table_stands():
    assert "](results/cost.md)" in "".join(gains_lines())
    assert "](docs/results/cost.md)" in "".join(gains.lines("docs/"))


@pytest.mark.parametrize("page", gains.CONCLUSIONS)
def test_page_of_results_opens_with_a_conclusion(page):
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    title, first, *_ = text.split("\n\n")
    assert title.startswith("# ")
    assert first.startswith(f"```{{conclusion}} {page}\n")
    assert conclusion(page).endswith(".")
