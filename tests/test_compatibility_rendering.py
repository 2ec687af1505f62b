"""The page shows what the results say, failures and gaps included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compatibility import COMMAND, ROOT

EXTENSIONS = ROOT / "docs" / "_ext"

RECORD = {
    "date": "2026-01-02T03:04:05+00:00",
    "environment": {
        "python": "3.12.1",
        "torch": "2.99",
        "numpy": "2.0",
        "sparseopt": "0.1",
        "git_commit": "abc123",
        "system": "Linux",
        "processor": "a processor",
        "devices": ["cpu", "an accelerator"],
        "packages": {"accelerate": "1.2", "lightning": None},
    },
    "parts": [
        {"part": "AMP", "packages": []},
        {"part": "torch.compile", "packages": ["accelerate"]},
        {"part": "Lightning", "packages": ["lightning"]},
    ],
    "left_out": {"deselected": 0, "files": []},
    "tests": [
        {
            "parts": ["AMP", "torch.compile"],
            "file": "tests/test_page.py",
            "test": "test_it_works",
            "sentence": "it works",
            "explanation": "As `it` should.",
            "passed": 3,
            "skipped": 1,
            "failed": 0,
            "not run": 0,
            "wrapped": [
                {
                    "package": "torch",
                    "optimizer": "Adam",
                    "state": ["compact", "masked"],
                    "dtypes": ["float32"],
                    "used": ["amsgrad", "foreach", "fused"],
                    "offered": ["amsgrad", "capturable", "foreach", "fused"],
                },
                {
                    "package": "torch",
                    "optimizer": "SparseAdam",
                    "state": [],
                    "dtypes": [],
                    "used": [],
                    "offered": [],
                },
                {
                    "package": "elsewhere",
                    "optimizer": "Other",
                    "state": ["masked"],
                    "dtypes": ["float32"],
                    "used": [],
                    "offered": [],
                },
            ],
            "cases": [
                {
                    "id": "a-set",
                    "outcome": "passed",
                    "params": {"way": ["Adam", {"fused": True}], "steps": 3},
                },
                {
                    "id": "b-set",
                    "outcome": "passed",
                    "params": {"way": ["Adam", {"foreach": False}], "steps": 3},
                },
                {"id": "c-set", "outcome": "passed", "params": {"way": ["SGD", {}], "steps": 5}},
                {
                    "id": "d-set",
                    "outcome": "skipped",
                    "reason": "needs | pipes",
                    "params": {"way": ["SGD", {}], "steps": 7},
                },
            ],
        },
        {
            "parts": ["AMP"],
            "file": "tests/test_page.py",
            "test": "test_nothing_is_lost",
            "sentence": "nothing is lost",
            "explanation": None,
            "passed": 0,
            "skipped": 0,
            "failed": 1,
            "not run": 0,
            "wrapped": [],
            "cases": [{"id": "", "outcome": "failed", "params": {}}],
        },
    ],
}

PAGE = """# Compatibility

```{compatibility-overview}
```

## AMP

```{compatibility-part} AMP
:classes:
```

## `torch.compile`

```{compatibility-part} torch.compile
```

## Lightning

```{compatibility-part} Lightning
```

## Made with

```{compatibility-made-with}
```
"""


@pytest.fixture
def text(monkeypatch):
    """The module that makes Markdown of results."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    import compatibility_text

    return compatibility_text


def cells(lines):
    """The cells of a table's rows, without its header."""
    rows = [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.replace("\\|", "PIPE").split("|")[1:-1]] for row in rows]


def test_the_overview_counts_by_part_and_tells_the_reasons_for_skipping(text):
    assert cells(text.overview(RECORD)) == [
        ["[AMP](#amp)", "2", "**1 failed**, 3", "1: needs PIPE pipes", "-"],
        ["[torch.compile](#torchcompile)", "1", "3", "1: needs PIPE pipes", "accelerate 1.2"],
        ["[Lightning](#lightning)", "0", "0", "-", "no lightning"],
    ]


def test_the_overview_tells_versions_and_devices(text):
    assert "torch 2.99 and python 3.12.1, on cpu, an accelerator" in text.overview(RECORD)[0]


def test_a_test_is_a_sentence_with_what_it_was_run_with(text):
    assert text.part(RECORD, "torch.compile") == [
        "- **It works.** As `it` should.",
        "",
        "  With Adam, SGD; fused, foreach=False; steps=3, steps=5, steps=7 · 3 passed "
        "· 1 skipped: needs \\| pipes · `tests/test_page.py`",
        "",
    ]


@pytest.mark.parametrize(
    ("ids", "values", "told"),
    [
        (["SGD", "Adam"], ["SGD", "Adam"], "SGD, Adam"),
        (["None", "3"], [None, 3], "size=None, size=3"),
        (["small", "large"], [3, 4], "small, large"),
    ],
    ids=["names", "numbers", "numbers with ids"],
)
def test_a_single_parameter_is_told_by_its_ids(text, ids, values, told):
    cases = [
        {"id": name, "params": {"size": value}} for name, value in zip(ids, values, strict=True)
    ]
    assert text.components(cases) == told


def test_parameters_that_json_cannot_hold_are_told_by_their_ids(text):
    cases = [{"id": "a-1", "params": {"size": 1}}, {"id": "b-1", "params": {}}]
    assert text.components(cases) == "a-1, b-1"


def test_what_did_not_pass_is_not_told_as_a_fact(text):
    lines = text.part(RECORD, "AMP")
    assert "- *Not proven by this run:* **Nothing is lost.**" in lines
    assert "  **1 failed**, 0 passed · `tests/test_page.py`" in lines


def test_a_part_without_tests_says_so(text):
    assert text.part(RECORD, "Lightning") == ["*No test proves anything here yet.*"]


def test_classes_of_torch_are_listed_with_what_was_and_was_not_run(text):
    assert cells(text.classes(RECORD, "AMP")) == [
        ["`Adam`", "compact, masked", "foreach, fused, amsgrad", "float32", "capturable"],
        ["`SparseAdam`", "refused", "-", "-", "-"],
    ]


def test_what_the_run_left_out_is_on_the_page(text):
    left_out = {"deselected": 7, "files": [{"file": "tests/test_x.py", "reason": "no x"}]}
    lines = text.made_with({**RECORD, "left_out": left_out}, COMMAND)
    assert "- **7 cases were deselected**" in lines
    assert "- **`tests/test_x.py` was left out**: no x" in lines
    assert COMMAND in lines


def build(folder: Path, page: str, record: dict | None) -> subprocess.CompletedProcess:
    """Sphinx on a project with nothing but the page."""
    pytest.importorskip("sphinx", reason="the docs extra is not installed")
    pytest.importorskip("myst_parser", reason="the docs extra is not installed")
    folder.joinpath("conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\n"
        "extensions = ['compatibility', 'myst_parser']\n"
        "root_doc = 'results/compatibility'\nmyst_heading_anchors = 3\n"
    )
    (folder / "results").mkdir()
    (folder / "results" / "compatibility.md").write_text(page)
    if record is not None:
        folder.joinpath("compatibility.json").write_text(json.dumps(record))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "text"]
    return subprocess.run(
        [*command, str(folder), str(folder / "out")], capture_output=True, text=True, check=False
    )


def test_the_page_builds_from_the_results(tmp_path):
    outcome = build(tmp_path, PAGE, RECORD)
    assert outcome.returncode == 0, outcome.stderr
    page = " ".join((tmp_path / "out" / "results" / "compatibility.txt").read_text().split())
    assert '**It works.** As "it" should.' in page
    assert "No test proves anything here yet." in page
    assert COMMAND in page


def test_without_results_the_build_fails_and_names_the_command(tmp_path):
    outcome = build(tmp_path, PAGE, None)
    assert outcome.returncode != 0
    assert f"docs/compatibility.json is missing. Make it, from the root, with: {COMMAND}" in (
        outcome.stderr
    )


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (PAGE.replace("{compatibility-part} Lightning", "python"), "must show all parts"),
        (PAGE.replace("} Lightning", "} Thunder"), "'Thunder' is no part; the parts are AMP"),
    ],
    ids=["left out", "misspelt"],
)
def test_a_page_that_does_not_show_every_part_fails_the_build(tmp_path, page, message):
    outcome = build(tmp_path, page, RECORD)
    assert outcome.returncode != 0
    assert message in outcome.stderr
