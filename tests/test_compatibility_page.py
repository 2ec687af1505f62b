"""The committed results of the compatibility page are those of the tests as they are."""

import json

import pytest

from tests.support.compatibility import COLLECTED, COMMAND, COMMITTED, OPTION, PARTS, ROOT
from tests.support.staleness import complaints


def test_the_committed_results_are_not_stale(request):
    """Of every test file that this session collected whole, and of no test that failed."""
    if request.config.getoption(OPTION):
        pytest.skip("this run writes the results anew")
    remedy = f"write them anew with: {COMMAND}"
    assert COMMITTED.is_file(), f"there are no results of the tests; {remedy}"
    record = json.loads(COMMITTED.read_text(encoding="utf-8"))
    wrong = complaints(record, request.config.stash[COLLECTED], ROOT)
    assert not wrong, "\n".join([f"the committed results are stale; {remedy}", *wrong])
    assert [entry["part"] for entry in record["parts"]] == list(PARTS), remedy


def test_contributors_are_told_the_command():
    assert COMMAND in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def result(test, *parts, **outcomes):
    return {
        "parts": list(parts),
        "file": "test_file.py",
        "test": test,
        "failed": 0,
        "not run": 0,
        **outcomes,
    }


def record_of(*tests, deselected=0, files=()):
    return {"tests": tests, "left_out": {"deselected": deselected, "files": files}}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "test_file.py").touch()
    return tmp_path


FRESH = record_of(result("test_a", "AMP", "FSDP2"), result("test_b", "AMP"))
COLLECTED_PAIRS = {("AMP", "test_a"), ("FSDP2", "test_a"), ("AMP", "test_b")}


def test_results_of_the_same_tests_are_fresh(root):
    assert complaints(FRESH, {"test_file.py": COLLECTED_PAIRS}, root) == []


def test_files_that_were_not_collected_are_not_judged(root):
    assert complaints(FRESH, {"test_other.py": set()}, root) == []


@pytest.mark.parametrize(
    ("collected", "complaint"),
    [
        (COLLECTED_PAIRS | {("AMP", "test_c")}, "test_file.py::test_c under 'AMP' is new"),
        (COLLECTED_PAIRS - {("AMP", "test_b")}, "test_file.py::test_b under 'AMP' is no more"),
        (COLLECTED_PAIRS - {("FSDP2", "test_a")}, "test_file.py::test_a under 'FSDP2' is no more"),
    ],
    ids=["added", "removed", "moved from a part"],
)
def test_a_test_that_came_or_went_makes_results_stale(root, collected, complaint):
    assert complaints(FRESH, {"test_file.py": collected}, root) == [complaint]


def test_a_file_that_came_or_went_makes_results_stale(root, tmp_path):
    new = {"test_file.py": COLLECTED_PAIRS, "test_new.py": {("AMP", "test_d")}}
    assert complaints(FRESH, new, root) == ["test_new.py::test_d under 'AMP' is new"]
    assert complaints(FRESH, {}, tmp_path / "elsewhere") == ["test_file.py is gone"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (record_of(result("test_a", "AMP", failed=2)), "test_file.py::test_a: 2 failed"),
        (record_of(result("test_a", "AMP", **{"not run": 1})), "test_file.py::test_a: 1 not run"),
        (record_of(deselected=3), "3 cases were deselected"),
        (
            record_of(files=[{"file": "test_x.py", "reason": "no x"}]),
            "test_x.py was left out: no x",
        ),
    ],
    ids=["failed", "not run", "deselected", "left out"],
)
def test_results_of_a_run_that_proves_less_than_all_are_refused(root, record, complaint):
    assert complaints(record, {}, root) == [complaint]


LOOKING = """
import pytest
from tests.support.compatibility import COLLECTED

@pytest.mark.compatibility("AMP")
def test_looking(request):
    assert {expected!r} == request.config.stash[COLLECTED]

@pytest.mark.compatibility("FSDP2")
@pytest.mark.parametrize("case", [1, 2])
def test_another(case): pass
"""
BOTH = {("AMP", "test_looking"), ("FSDP2", "test_another")}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"test_look.py": BOTH, "test_plain.py": set()}),
        (["-k", "looking"], {"test_look.py": BOTH, "test_plain.py": set()}),
        (["test_look.py"], {"test_look.py": BOTH}),
        (["test_look.py::test_looking", "test_plain.py"], {"test_plain.py": set()}),
        (["--last-failed"], {}),
    ],
    ids=["all", "deselected", "a file", "a test", "last failed"],
)
def test_only_files_that_were_collected_whole_are_compared(pytester, arguments, expected):
    pytester.makeini("[pytest]\nmarkers = compatibility(part)")
    pytester.makepyfile(
        test_look=LOOKING.format(expected=expected), test_plain="def test_plain(): pass"
    )
    outcome = pytester.runpytest_inprocess("-p", "tests.support.compatibility", *arguments)
    assert outcome.ret == pytest.ExitCode.OK
