"""The table of differences from Static by the length of training."""

import json

from benchmarks.cifar.by_length import length_table
from tests.benchmarks.report_records import record


def runs(epochs, method, accuracies, *, width=2):
    for seed, accuracy in enumerate(accuracies):
        line = record(method, "erk", 0.1, seed, accuracy)
        settings = line["protocol"]["settings"]
        settings = settings | {"training": {"epochs": epochs}, "model": {"width": width}}
        about = line["protocol"] | {"name": f"e{epochs}-{width}", "settings": settings}
        about["label"] = f"REDUCED protocol 'e{epochs}-{width}'"
        yield line | {"protocol": about, "key": f"{line['key']}-{epochs}-{width}"}


def folder_of(root, name, lines):
    folder = root / name
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_differences_of_one_network_are_listed_by_length_and_then_the_published_ones(tmp_path):
    dense = list(runs(25, "dense", [0.9])) + list(runs(25, "set", [0.83]))
    long = [*runs(25, "static", [0.80, 0.82]), *runs(25, "rigl", [0.81, 0.84]), *dense]
    short = [*runs(8, "static", [0.70]), *runs(8, "rigl", [0.69])]
    narrow = [*runs(8, "static", [0.5], width=1), *runs(8, "rigl", [0.6], width=1)]
    folder_of(tmp_path, "long", long)
    folder_of(tmp_path, "others", [*short, *narrow])
    header, _, *rows = length_table(tmp_path)
    assert header == (
        "| epochs | Static, % | SET minus Static | RigL minus Static | "
        "RigL, 10 batches minus Static |"
    )
    # Differences of 1 and 2 points: mean 1.5, and sample deviation 0.71.
    assert rows == [
        "| 8 | 70.00 | - | -1.00 (1) | - |",
        "| 25 | 81.00 ± 1.41 | +3.00 (1) | +1.50 ± 0.71 (2) | - |",
        # The original authors: 91.5 % for Static and 92.9 % for RigL.
        "| published [G] | 91.5 | - | +1.4 | - |",
        "",
    ]
