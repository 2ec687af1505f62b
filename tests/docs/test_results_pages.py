"""Reports become pages, and figures take the colours of the theme."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _extensions(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "_ext"), *sys.path])


@pytest.fixture
def report(tmp_path):
    """A report with a figure beside it, below a folder of benchmarks."""
    folder = tmp_path / "benchmarks" / "images" / "results" / "cpu"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "a.png").touch()
    path = folder / "report.md"
    path.write_text("# Images\n\n![a figure](figures/a.png)\n\n| 1.0 ± 0.5 |\n", encoding="utf-8")
    return path


def test_report_becomes_a_page_that_finds_its_figures(report, tmp_path):
    from committed_results import page_name, pages_of

    pages = tmp_path / "docs" / "results" / "reports"
    pages.mkdir(parents=True)
    name = page_name(report.parent, tmp_path / "benchmarks")
    ((page, text),) = pages_of(report, pages, name).items()
    assert page == pages / "images-cpu.md"
    assert "\n# Images: `cpu`\n" in text
    figure = text.partition("](")[2].partition(")")[0]
    assert (pages / figure).samefile(report.parent / "figures" / "a.png")


def test_long_report_has_a_page_for_each_section(report, tmp_path):
    from committed_results import LONG, pages_of

    text = (
        f"# Images\n\nWhat it is.\n\n## One, at 0.1\n\n### Part\n\n{'word ' * LONG}\n\n## Two\n\n"
    )
    report.write_text(f"{text}![a figure](figures/a.png)\n", encoding="utf-8")
    pages = tmp_path / "docs" / "results" / "reports"
    (pages / "images").mkdir(parents=True)
    first, one, two = pages_of(report, pages, "images").items()
    assert first[0] == pages / "images.md"
    assert "What it is." in first[1]
    assert "\nimages/one-at-0.1\nimages/two\n" in first[1]
    assert one[0] == pages / "images" / "one-at-0.1.md"
    assert "\n# One, at 0.1\n\n## Part\n" in one[1]
    figure = two[1].partition("](")[2].partition(")")[0]
    assert (two[0].parent / figure).samefile(report.parent / "figures" / "a.png")


def test_every_committed_report_is_a_page(tmp_path):
    from committed_results import write_report_pages

    class App:
        srcdir = str(tmp_path / "docs")

    for name in ("one", "two"):
        folder = tmp_path / "benchmarks" / name / "results"
        folder.mkdir(parents=True)
        (folder / "report.md").write_text(f"# {name}\n", encoding="utf-8")
    pages = tmp_path / "docs" / "results" / "reports"
    pages.mkdir(parents=True)
    (pages / "gone.md").write_text("# A report that is there no more\n", encoding="utf-8")
    write_report_pages(App())
    assert {page.name for page in pages.iterdir()} == {"one.md", "two.md"}


def test_figure_is_drawn_in_the_colours_of_the_theme():
    from themed_figures import themed

    def draw():
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], [1, 0], color="tab:blue", label="a line")
        axes.set_xlabel("words")
        axes.legend()
        return figure

    text = themed(draw, "A line that falls & ends")
    drawing = text.removeprefix("```{raw} html\n").removesuffix("\n```")
    svg = ET.fromstring(drawing)[0]
    assert svg.get("aria-label") == "A line that falls & ends"
    assert "words" in "".join(svg.itertext())
    assert "#1f77b4" in drawing
    assert not {"#000000", "#ffffff"} & set(drawing.replace(";", " ").replace('"', " ").split())
    assert "\n\n" not in drawing, "an empty line ends HTML within Markdown"


SHOWN = re.compile(
    r"```\{(?:[a-z]+-(?:overview|results|accuracy|methods)|overhead-figure|conclusion|gains|picture)\}"
    r"[^\n]*\n(.*?)```",
    re.DOTALL,
)
PLACE = re.compile(r"[\w/-]+\.(?:md|svg)")


def test_reader_of_the_repository_is_told_where_each_table_is():
    pages = (ROOT / "docs").rglob("*.md")
    written = (page for page in pages if "reports" not in page.parts)
    told = [text for page in written for text in SHOWN.findall(page.read_text(encoding="utf-8"))]
    assert len(told) > 20
    places = [PLACE.findall(text) for text in told]
    assert {len(found) for found in places} <= {1, 2}, told
    assert [one for found in places for one in found if not (ROOT / one).is_file()] == []


def test_pages_on_transformers_say_what_the_committed_accuracies_say():
    """If another result is committed, these pages have to say so."""
    from benchmarks import overview
    from benchmarks.structured.records import read_records

    runs = read_records(overview.STRUCTURED, "accuracy")
    found = {(run["method"], run["seed"]): run["accuracy"] for run in runs}
    for seed in {seed for _, seed in found}:
        dense, thinner, structured = (
            found[method, seed] for method in ("dense", "thinner", "rigl-struct")
        )
        assert dense > thinner > structured
    single = [found[one] for one in found if one[0] in {"srigl", "rigl", "rigl-same-time"}]
    smaller = [found[one] for one in found if one[0] in {"narrower", "thinner"}]
    assert max(single) < min(smaller)
    pages = ("how-to/faster", "methods/rigl-struct", "methods/srigl", "results/structured")
    texts = [(ROOT / "docs" / f"{page}.md").read_text("utf-8") for page in pages]
    assert all("#accuracy-of-a-transformer" in text for text in texts[:3])
    assert "more accurate than `rigl-struct`" in " ".join(texts[0].split())
    assert "more accurate than `rigl-struct` with both seeds" in " ".join(texts[3].split())


def test_page_on_smaller_models_has_the_committed_times_of_transformers():
    from benchmarks import overview
    from benchmarks.structured.records import read_records
    from benchmarks.structured.report import short_time_rows

    rows = short_time_rows(read_records(overview.STRUCTURED, "time"))
    quarter = next(row for row in rows if row["density"] == "0.25")
    page = (ROOT / "docs" / "how-to" / "smaller-models.md").read_text("utf-8")
    for phase in ("training", "inference"):
        assert quarter[f"{phase}, compacted / dense"] in page, phase


@pytest.mark.parametrize(
    ("figure", "page", "parts", "directive"),
    [
        ("kernels", "kernels", "PARTS", "kernel-results"),
        ("steps", "live-training", "STEP_PARTS", "step-results"),
        ("condensed", "inference", "CONDENSED_PARTS", "condensed-results"),
    ],
)
def test_every_part_of_a_page_on_speed_has_something_to_say(figure, page, parts, directive):
    import kernel_results

    from benchmarks import overview

    records = overview.speed_records(figure)
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    for part, make in getattr(kernel_results, parts).items():
        assert f"```{{{directive}}} {part}\n" in text
        assert "".join(make(records))


def test_pages_with_the_picture_are_made_again_when_its_times_change():
    import overviews

    from benchmarks import picture
    from benchmarks.cifar.overview import RESULTS

    read = set()
    overviews.read_all(SimpleNamespace(read=read.add))
    folder = RESULTS / picture.best_source().folder
    assert {folder / "results.jsonl", folder / "timings.jsonl"} <= read
