"""The table of gains agrees with the results files, which these tests read on their own."""

import json
from pathlib import Path

import pytest

from benchmarks import gains

ROOT = Path(__file__).parents[2]
SPEED = ROOT / "benchmarks" / "speed" / "results"
OVERHEAD = ROOT / "benchmarks" / "overhead" / "results" / "results.json"


def cells(name):
    (line,) = (one for one in gains.lines() if one.startswith(f"| {name} |"))
    return line


def processor(record):
    flags = record["machine"]["flags"]
    if "amx_bf16" in flags:
        return "AMX"
    return "AVX2 only" if "avx512f" not in flags else "ordinary"


def steps(kind):
    """The records of steps on one thread at density 0.1, on one kind of processor."""
    records = [json.loads(path.read_text()) for path in SPEED.glob("steps-*.json")]
    return [
        one
        for one in records
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


def test_training_row_has_the_range_of_the_speed_ups():
    ratios = [one["speedup"]["speed_up, bfloat16"]["bfloat16"][0] for one in steps("ordinary")]
    assert f"one thread: {min(ratios):.1f} to {max(ratios):.1f} times" in cells("training, CPU")


def test_training_row_has_the_speed_up_of_each_network_where_dense_code_has_amx():
    found = {}
    for one in steps("AMX"):
        ratio = one["speedup"]["speed_up, bfloat16"]["bfloat16"][0]
        found.setdefault(one["title"], []).append(f"{ratio:.1f}")
    assert {"WRN-22-2", "WRN-22-2, dropout 0.3"} <= found.keys()
    for title, ratios in found.items():
        span = " to ".join(dict.fromkeys((min(ratios), max(ratios))))
        said = f"{span} times ({title.replace(', ', ' with ')})"
        assert said in cells("training, CPU")
        assert said in gains.CONCLUSIONS["live-training"]()


def test_training_row_has_the_speed_ups_in_float32_without_avx512():
    ratios = [one["speedup"]["speed_up, float32"]["float32"][0] for one in steps("AVX2 only")]
    span = " to ".join(dict.fromkeys(f"{one(ratios):.1f}" for one in (min, max)))
    said = f"without AVX-512, fp32 is {span} times as fast as dense fp32"
    assert said in cells("training, CPU")
    assert f"float32 with `speed_up` are {span} times" in gains.CONCLUSIONS["live-training"]()


@pytest.mark.parametrize("kind", ["ordinary", "AMX", "AVX2 only"])
def test_inference_row_has_the_range_of_the_ratios(kind):
    records = [json.loads(path.read_text()) for path in SPEED.glob("condensed-*.json")]
    found = [
        one
        for one in records
        if one["density"] == 0.1
        and one["environment"]["threads"] == 1
        and processor(one["machine"]) == kind
    ]

    def ratios(form):
        for one in found:
            times = {
                name: quartiles[1]
                for name, quartiles in one["milliseconds"].items()
                if name.endswith(form)
            }
            dense = min(time for name, time in times.items() if not name.startswith("sparse"))
            yield dense / min(time for name, time in times.items() if name.startswith("sparse"))

    fp32 = list(ratios("float32"))
    bf16 = list(ratios("bfloat16")) if kind != "AVX2 only" else []
    said = f"{min(fp32):.1f} to {max(fp32):.1f} times"
    if kind == "AVX2 only":
        said = f"AVX2 but without AVX-512: {said} in float32"
    elif kind == "AMX":
        said += f" in float32, and {min(bf16):.1f} to {max(bf16):.1f} times in bfloat16"
    else:
        said += f" as fast in float32 and {min(bf16):.1f} to {max(bf16):.1f} times as fast"
    assert said in cells("inference, CPU")


def test_links_are_found_from_where_the_table_stands():
    assert "](results/cost.md)" in "".join(gains.lines())
    assert "](docs/results/cost.md)" in "".join(gains.lines("docs/"))


@pytest.mark.parametrize("page", gains.CONCLUSIONS)
def test_page_of_results_opens_with_a_conclusion(page):
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    title, first, *_ = text.split("\n\n")
    assert title.startswith("# ")
    assert first.startswith(f"```{{conclusion}} {page}\n")
    assert gains.CONCLUSIONS[page]().endswith(".")
