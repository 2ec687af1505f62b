"""The data file of published numbers equals the notes that it was made from, if they are there."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.cifar.report.paper import PAPER, SOURCES, Paper, published_datasets
from benchmarks.cifar.report.results import Variant

SHARED = Path(__file__).parents[3] / "shared"
NOTES = SHARED / "reference" / "paper.md"
METHODS = {
    "Dense": "dense",
    "Small-Dense": "small-dense",
    "Static": "static",
    "SET": "set",
    "RigL": "rigl",
    "RigL-Struct": "rigl-struct",
    "RigL 2x": "rigl-2x",
    "RigL 3x": "rigl-3x",
    "SNFS": "snfs",
    "Pruning": "pruning",
    "Lottery": "lottery",
}
INITS = {"-": None, "Random": "uniform", "ERK": "erk"}

notes = pytest.mark.skipif(not NOTES.exists(), reason="the notes on the paper are not beside")


def table_below(heading):
    """The cells of the first table below a heading of the notes, without its header."""
    below = NOTES.read_text().split(heading)[1]
    lines = [line for line in below[below.index("\n|") :].split("\n\n")[0].splitlines() if line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def readings(cell, source):
    """The published (accuracy, std, source) of a cell such as ``92.6±.10 [R]; 92.9±.10 [S]``."""
    found = []
    for part in filter(None, map(str.strip, cell.split(";"))):
        accuracy, std, letter = re.fullmatch(r"([\d.]+)±([\d.]+)(?: \[(\w)\])?", part).groups()
        found.append((Decimal(accuracy), Decimal(std), letter or source))
    return found


def printed(rows):
    return {
        (*vars(row.variant).values(), str(row.accuracy), str(row.std), row.source) for row in rows
    }


@notes
@pytest.mark.parametrize(
    ("dataset", "heading"),
    [("cifar10", "## CIFAR-10, WRN-22-2"), ("cifar100", "## CIFAR-100, ResNet-50")],
)
def test_main_tables_are_those_of_the_notes_to_the_digit(dataset, heading):
    expected, flops = set(), {}
    for name, init, *cells in table_below(heading):
        for density, accuracy, cost in zip((0.1, 0.2), cells[::2], cells[1::2], strict=True):
            density = None if name == "Dense" else density
            names = (METHODS[name], INITS[init], density, ())
            for value, std, source in readings(accuracy, "R"):
                expected.add((*names, str(value), str(std), source))
                # FLOPs stand once in a cell; ours are with the first source.
                if "," in cost and name != "Dense":
                    flops.setdefault(names[:3], tuple(map(Decimal, cost.split(","))))
    paper = Paper(dataset)
    assert printed(paper.main) == expected
    ours = {
        (row.variant.method, row.variant.init, row.variant.density): (
            row.train_flops,
            row.inference_flops,
        )
        for row in paper.main
        if row.train_flops is not None
    }
    assert ours == flops
    for key, pair in flops.items():
        assert tuple(map(str, ours[key])) == tuple(map(str, pair))


@notes
def test_dense_flops_are_those_of_the_notes():
    for dataset, heading in (("cifar10", "CIFAR-10, WRN-22-2:"), ("cifar100", "CIFAR-100, ResN")):
        (dense,) = [row for row in table_below(f"## {heading}") if row[0] == "Dense"]
        train, inference = map(Decimal, dense[3].split(","))
        paper = Paper(dataset)
        assert (paper.dense_train_flops, paper.dense_inference_flops) == (train, inference)


@notes
def test_flops_on_imagenet_are_those_of_the_notes():
    printed = re.search(r"\[E\] prints ([^(]*)\(", NOTES.read_text())[1]
    table = PAPER["imagenet"]
    order = [("uniform", ".2"), ("uniform", ".1"), ("erk", ".2"), ("erk", ".1")]
    rows = {(row["init"], row["density"]): row for row in table["inference_flops"]}
    for (init, density), value in zip(order, printed.split(","), strict=True):
        assert str(rows[init, Decimal(density)]["inference_flops"]) == str(Decimal(value.strip()))


@notes
def test_original_authors_numbers_are_those_of_the_notes():
    text = NOTES.read_text().split("Original authors' own")[1].split("\n\n")[0]
    found = {}
    for method, init, values in re.findall(r"(RigL|Static|Pruning)( ERK)? ([\d./]+\d)", text):
        found[METHODS[method], init.strip().lower() or None] = values.split("/")
    found["rigl-2x", "erk"] = re.search(r"2x: ([\d./]+)\)", text)[1].split("/")
    expected = {
        (method, init, density, (), value, "None", "G")
        for (method, init), values in found.items()
        for density, value in zip((0.5, 0.2, 0.1, 0.05), values, strict=True)
    }
    assert printed(Paper("cifar10").original_authors) == expected
    assert len(expected) == 16


@notes
def test_search_optima_are_those_of_the_notes():
    rows = {}
    for name, reference, optimum, accuracy in table_below("## (alpha, delta_T) tuning"):
        init, density = name.split()
        ((value, std, _),), ((best, best_std, _),) = (
            readings(reference, "R"),
            readings(accuracy, "R"),
        )
        alpha, delta_t = optimum.split(",")
        rows[INITS[init], float(density)] = [
            f"{value} ± {std}",
            f"({Decimal(alpha)}, {int(delta_t)})",
            f"{best} ± {best_std} [R]",
        ]
    tuned = Paper("cifar10").tuning
    assert {(one.init, one.density): list(cells.values()) for one, cells in tuned.items()} == rows
    assert len(rows) == 6


@notes
def test_redistribution_tables_are_those_of_the_notes():
    expected = {"cifar10": set(), "cifar100": set()}
    for init, *cells in table_below("## Redistribution [R]"):
        places = [(name, density) for name in expected for density in (0.1, 0.2)]
        for (dataset, density), cell in zip(places, cells, strict=True):
            methods = ("rigl", "rigl-sg", "rigl-sm")
            for method, part in zip(methods, cell.split("/"), strict=True):
                for value, std, source in readings(part.strip().strip("-"), "R"):
                    row = (method, INITS[init], density, (), str(value), str(std), source)
                    expected[dataset].add(row)
    for dataset, rows in expected.items():
        assert printed(Paper(dataset).redistribution) == rows


@notes
def test_structured_tables_are_those_of_the_report_itself():
    (seed,) = (SHARED / "seed").glob("*.txt")
    lines = seed.read_text().split("Table 2:")[1].splitlines()
    init, expected = None, {"cifar10": set(), "cifar100": set()}
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0].endswith(" Initialization"):
            init = INITS[cells[0].split()[0]]
        if cells[0] not in METHODS or len(cells) != 9:
            continue
        for index, cell in enumerate(cells[1::2]):
            value, std = cell.split(" ± ")
            dataset, density = ("cifar10", "cifar100")[index // 2], (0.1, 0.2)[index % 2]
            wall_time = cells[2 + 2 * index].removesuffix("x")
            names = (METHODS[cells[0]], init if "RigL" in cells[0] else None, density)
            expected[dataset].add((*names, value, std, wall_time))
    for dataset, rows in expected.items():
        assert len(rows) == 10
        assert {
            (
                row.variant.method,
                row.variant.init,
                row.variant.density,
                str(row.accuracy),
                str(row.std),
                str(row.wall_time),
            )
            for row in Paper(dataset).structured
        } == rows


@pytest.mark.parametrize(
    ("variant", "accuracy"),
    [
        (("static", "uniform", 0.1), ["89.1 ± 0.17 [R]"]),
        (("small-dense", None, 0.2), ["91.0 ± 0.07 [R]"]),
        (("rigl", "uniform", 0.2), ["92.6 ± 0.10 [R]", "92.9 ± 0.10 [S]"]),
        (("rigl-2x", "erk", 0.05), ["92.4 [G]"]),
        (("rigl-sm", "erk", 0.1), ["92.27 ± 0.01 [R]"]),
        (("set", "erk", 0.3), []),
    ],
)
def test_published_numbers_keep_their_sources_and_their_last_digits(variant, accuracy):
    assert [str(row) for row in Paper("cifar10").of(Variant(*variant))] == accuracy


def test_number_without_an_init_is_published_for_either():
    paper = Paper("cifar10")
    erk, uniform = (paper.of(Variant("pruning", init, 0.1)) for init in ("erk", "uniform"))
    assert [str(row) for row in erk] == ["92.6 ± 0.08 [R]", "93.3 [G]"]
    assert erk == uniform


def test_published_numbers_are_not_given_for_other_settings_of_a_method():
    changed = Variant("rigl", "erk", 0.1, (("lr", 0.3),))
    assert Paper("cifar10").of(changed) == []


def test_every_row_names_a_source_that_is_described():
    for dataset in published_datasets():
        paper = Paper(dataset)
        for rows in (paper.main, paper.original_authors, paper.redistribution, paper.structured):
            assert {row.source for row in rows} <= SOURCES.keys()
