"""The compatibility page names existing test files, and one for each of its claims."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "compatibility.md"
NAMED = re.compile(r"`((?:\w+/)*test_\w+\.py)`")
ROW = re.compile(r"^\| (?!what |---).*\|$", re.MULTILINE)


def test_every_row_names_test_files_that_exist() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    named = {row: NAMED.findall(row) for row in rows}
    assert len(rows) > 20
    assert [row for row, files in named.items() if not files] == []
    files = {file for named_in_row in named.values() for file in named_in_row}
    assert {file for file in files if not (ROOT / "tests" / file).is_file()} == set()
