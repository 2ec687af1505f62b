"""What the compatibility page is made from is right, for small suites of known outcome."""

import json

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.compatibility import OPTION, ROOT

OUTCOMES = '''
import pytest
import torch

amp = pytest.mark.compatibility("AMP")


@amp
def test_a_skipped_step_advances_nothing():
    """Not even the
    scheduler.

    More that nobody needs on the page.
    """


CASES = [("SGD", {"fused": True}), ("Adam", {}), ("AdamW", {"foreach": False})]


@amp
@pytest.mark.parametrize(("name", "way"), CASES, ids=["first", "second", "third"])
def test_one_of_each(name, way):
    if name == "Adam":
        pytest.skip("needs an accelerator")
    assert name != "AdamW"


@pytest.fixture
def broken():
    raise RuntimeError


@pytest.fixture
def broken_later():
    yield
    raise RuntimeError


@amp
def test_it_fails_before(broken):
    pass


@amp
def test_it_fails_afterwards(broken_later):
    pass


@amp
@pytest.mark.skipif(True, reason="not here")
def test_it_is_never_run():
    raise AssertionError


@amp
@pytest.mark.xfail(reason="known to be wrong")
def test_it_is_known_to_fail():
    raise AssertionError


@amp
@pytest.mark.parametrize("value", [torch.bfloat16, torch.nn.Linear, float("inf"), object()])
def test_values(value):
    pass


@amp
@pytest.mark.compatibility("Bad input")
def test_of_two_parts():
    pass


def test_without_a_marker():
    raise AssertionError
'''

MARKED_CASES = [*["one of each"] * 3, *["values"] * 4, *["others"] * 6]

WRAPPING = """
import pytest
import torch
from sparseopt import SparseOptimizer

pytestmark = pytest.mark.compatibility("Optimizers of torch")


def wrap(kind, dtype=torch.float32, state="auto", **options):
    model = torch.nn.Linear(8, 8, dtype=dtype)
    SparseOptimizer(kind(model.parameters(), **options), model, state=state, density=0.5)


class Own(torch.optim.SGD):
    pass


def test_of_wrapping():
    wrap(torch.optim.Adam, fused=True, amsgrad=True)
    wrap(torch.optim.Adam, foreach=False, state="masked", dtype=torch.bfloat16)
    wrap(Own)
    with pytest.raises(TypeError):
        wrap(torch.optim.SparseAdam)


def test_that_fails_after_wrapping():
    wrap(torch.optim.SGD)
    raise AssertionError
"""


@pytest.fixture(autouse=True)
def _marker_is_registered(pytester):
    pytester.makeini("[pytest]\nmarkers = compatibility(part)\naddopts = -p no:cacheprovider")


PLUGIN = ("-p", "tests.support.compatibility")


def run(pytester, *args, **how):
    return pytester.runpytest_inprocess(*PLUGIN, *args, **how)


def results(pytester, *args):
    """The file that a run wrote, and its tests by name."""
    run(pytester, f"{OPTION}=results.json", *args)
    return read_results(pytester)


def read_results(pytester):
    record = json.loads((pytester.path / "results.json").read_text())
    return record, {test["test"]: test for test in record["tests"]}


def counts(test):
    return {key: test[key] for key in ("passed", "skipped", "failed", "not run") if test[key]}


def test_every_outcome_is_reported_as_what_it_is(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester)
    assert {name: counts(test) for name, test in tests.items()} == {
        "test_a_skipped_step_advances_nothing": {"passed": 1},
        "test_one_of_each": {"passed": 1, "skipped": 1, "failed": 1},
        "test_it_fails_before": {"failed": 1},
        "test_it_fails_afterwards": {"failed": 1},
        "test_it_is_never_run": {"skipped": 1},
        "test_it_is_known_to_fail": {"skipped": 1},
        "test_values": {"passed": 4},
        "test_of_two_parts": {"passed": 1},
    }
    assert [(case["id"], case["outcome"]) for case in tests["test_one_of_each"]["cases"]] == [
        ("first", "passed"),
        ("second", "skipped"),
        ("third", "failed"),
    ]


def test_skips_come_with_their_reasons(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester)
    assert {
        case["reason"] for test in tests.values() for case in test["cases"] if "reason" in case
    } == {"needs an accelerator", "not here", "expected to fail: known to be wrong"}


def test_a_test_is_told_in_words_with_the_first_paragraph_of_its_docstring(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester)
    test = tests["test_a_skipped_step_advances_nothing"]
    assert test["sentence"] == "a skipped step advances nothing"
    assert test["explanation"] == "Not even the scheduler."
    assert test["file"] == "test_outcomes.py"
    assert tests["test_one_of_each"]["explanation"] is None


def test_a_test_may_prove_something_for_two_parts(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester)
    assert tests["test_of_two_parts"]["parts"] == ["AMP", "Bad input"]


def test_parameters_are_kept_where_json_can_hold_them(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester)
    assert [case["params"] for case in tests["test_one_of_each"]["cases"]] == [
        {"name": "SGD", "way": {"fused": True}},
        {"name": "Adam", "way": {}},
        {"name": "AdamW", "way": {"foreach": False}},
    ]
    assert [case["params"] for case in tests["test_values"]["cases"]] == [
        {"value": "bfloat16"},
        {"value": "Linear"},
        {"value": "inf"},
        {},
    ]


def test_wrapped_optimizers_are_seen_in_tests_that_pass(pytester, monkeypatch):
    """The class, how its state is kept, its options and the dtype, whatever parameters say."""
    pytester.makepyfile(test_wrapping=WRAPPING)
    # Not in this process: pytester forgets what was imported meanwhile, and torch cannot be
    # imported twice.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.runpytest_subprocess(*PLUGIN, f"{OPTION}=results.json")
    _, tests = read_results(pytester)
    seen = {entry["optimizer"]: entry for entry in tests["test_of_wrapping"]["wrapped"]}
    assert sorted(seen) == ["Adam", "Own", "SparseAdam"]
    assert seen["Adam"]["package"] == "torch"
    assert seen["Adam"]["state"] == ["compact", "masked"]
    assert seen["Adam"]["dtypes"] == ["bfloat16", "float32"]
    assert seen["Adam"]["used"] == ["amsgrad", "for-loop", "fused"]
    assert {"foreach", "capturable", "maximize"} <= set(seen["Adam"]["offered"])
    assert seen["Own"]["package"] == "test_wrapping"
    assert seen["SparseAdam"]["state"] == [], "it was refused"
    assert tests["test_that_fails_after_wrapping"]["wrapped"] == []


def test_a_session_leaves_the_optimizer_as_it_was(pytester):
    construct = SparseOptimizer.__init__
    pytester.makepyfile(
        "from sparseopt import SparseOptimizer\n"
        "def test_it(): assert SparseOptimizer.__init__.__wrapped__"
    )
    run(pytester, f"{OPTION}=results.json").assert_outcomes(passed=1)
    assert SparseOptimizer.__init__ is construct


def test_versions_and_devices_are_noted(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    record, _ = results(pytester)
    about = record["environment"]
    assert about["torch"] == torch.__version__
    assert about["devices"][0] == "cpu"
    assert about["packages"]["hypothesis"]
    assert {"accelerate", "lightning", "transformers", "pytorch_optimizer"} <= set(
        about["packages"]
    )


def test_what_a_run_left_out_is_noted(pytester):
    pytester.makepyfile(
        test_outcomes=OUTCOMES,
        test_framework="import pytest\npytest.importorskip('no_such_framework', reason='absent')",
    )
    record, tests = results(pytester, "-k", "first or two_parts or without")
    assert record["left_out"]["files"] == [{"file": "test_framework.py", "reason": "absent"}]
    assert record["left_out"]["deselected"] == len(MARKED_CASES) - 2
    assert sorted(tests) == ["test_of_two_parts", "test_one_of_each"]


def test_a_run_that_stops_early_says_what_it_did_not_run(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    _, tests = results(pytester, "-x")
    assert counts(tests["test_one_of_each"]) == {"passed": 1, "skipped": 1, "failed": 1}
    assert counts(tests["test_it_fails_before"]) == {"not run": 1}


@pytest.mark.parametrize("broken", ["raise KeyboardInterrupt", "import no_such_module"])
def test_an_interrupted_run_leaves_the_last_results(pytester, broken):
    (pytester.path / "results.json").write_text("the last results")
    pytester.makepyfile(test_outcomes=OUTCOMES, test_broken=broken)
    outcome = run(pytester, f"{OPTION}=results.json", no_reraise_ctrlc=True)
    assert outcome.ret == pytest.ExitCode.INTERRUPTED
    assert (pytester.path / "results.json").read_text() == "the last results"
    outcome.stdout.fnmatch_lines(["*nothing written to *results.json*"])


def test_nothing_is_written_without_the_option(pytester):
    pytester.makepyfile(test_outcomes=OUTCOMES)
    before = sorted(pytester.path.iterdir())
    run(pytester).assert_outcomes(passed=8, failed=2, skipped=2, xfailed=1, errors=2)
    assert [path for path in sorted(pytester.path.iterdir()) if path not in before] == []


@pytest.mark.parametrize("marker", ["'Automatic precision'", "", "part='AMP'", "'AMP', 'FSDP2'"])
def test_a_part_that_is_not_on_the_page_stops_the_run(pytester, marker):
    pytester.makepyfile(f"import pytest\n@pytest.mark.compatibility({marker})\ndef test_it(): pass")
    outcome = run(pytester)
    assert outcome.ret == pytest.ExitCode.USAGE_ERROR
    outcome.stderr.fnmatch_lines(["*::test_it: compatibility(*) must name one of*'FSDP2'*"])


@pytest.mark.parametrize("argument", ["--collect-only", "-n2"])
def test_runs_that_would_write_half_of_it_are_refused(pytester, argument):
    if argument == "-n2":
        pytest.importorskip("xdist")
    outcome = run(pytester, f"{OPTION}=results.json", argument)
    assert outcome.ret == pytest.ExitCode.USAGE_ERROR
    outcome.stderr.fnmatch_lines([f"*{OPTION}*{argument[:2]}*"])
