"""Methods that start with the final masks of another run, and how long these masks are kept."""

import pytest

from benchmarks.cifar.config import load_preset
from benchmarks.cifar.data import load_dataset
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import RECIPES, Recipe
from benchmarks.cifar.plan import Agenda, Job
from benchmarks.cifar.records import Folder, read_results
from benchmarks.cifar.worker import Setup, do


@pytest.fixture(autouse=True)
def own_recipes(monkeypatch):
    """A second method with the masks of pruning, and a method with the masks of a ticket."""
    monkeypatch.setitem(RECIPES, "my-lottery", Recipe("rigl", masks_from="pruning"))
    monkeypatch.setitem(RECIPES, "ticket-of-ticket", Recipe("set", masks_from="lottery"))


@pytest.fixture
def setup(cifar_tree, tmp_path):
    return Setup(Folder(tmp_path / "out"), cifar_tree)


@pytest.fixture
def plan(quick_preset, cifar_tree, setup):
    """Makes the agenda of a session from names of methods."""
    protocol = load_preset(str(quick_preset))
    data = load_dataset("cifar10", cifar_tree, setup.folder.cache).fingerprint()

    def make(*methods):
        jobs = [Job(protocol, RunSpec(method, "erk", 0.2, 0), data) for method in methods]
        return Agenda(jobs, setup.folder)

    return make


def names(jobs):
    return [job.spec.method for job in jobs]


def run(setup, agenda):
    """Do all jobs as a session does, one after the other; return them as they were trained."""
    trained = []
    while ready := agenda.ready():
        record = do(setup, ready[0], agenda.dependents(ready[0]))
        assert record is not None, f"{ready[0].title} is ready, but counts as done"
        trained.append(record["run"]["method"])
    assert agenda.left == []
    return trained


def has_masks(setup, method):
    return any(setup.folder.root.glob(f"masks/{method}-erk-*"))


def test_masks_are_kept_until_every_planned_method_has_started_with_them(plan, setup):
    agenda = plan("pruning", "lottery", "my-lottery")
    assert run(setup, agenda) == ["pruning", "lottery", "my-lottery"]
    _, *others = read_results(setup.folder.results)
    assert [one["source"]["label"] for one in others] == ["pruning-erk-0.2-seed0"] * 2
    assert others[1]["recipe"]["masks_from"] == "pruning"
    assert not has_masks(setup, "pruning")


def test_run_is_repeated_once_for_a_method_that_is_planned_after_its_masks_were_removed(
    plan, setup
):
    run(setup, plan("pruning", "lottery"))
    assert not has_masks(setup, "pruning")
    assert run(setup, plan("lottery", "my-lottery")) == ["pruning", "my-lottery"]
    assert [one["run"]["method"] for one in read_results(setup.folder.results)] == [
        "pruning",
        "lottery",
        "my-lottery",
    ]
    assert plan("pruning", "lottery", "my-lottery").left == []


def test_run_is_repeated_if_another_session_removes_masks_that_are_still_needed(plan, setup):
    agenda = plan("pruning", "my-lottery")
    (pruning,) = agenda.ready()
    do(setup, pruning, agenda.dependents(pruning))
    assert names(agenda.ready()) == ["my-lottery"]
    setup.folder.masks(pruning.key).unlink()
    assert run(setup, agenda) == ["pruning", "my-lottery"]


def test_masks_are_handed_on_through_several_runs(plan, setup):
    assert names(plan("ticket-of-ticket").jobs) == ["pruning", "lottery", "ticket-of-ticket"]
    run(setup, plan("lottery"))
    lottery = plan("lottery").jobs[-1]
    setup.folder.masks(lottery.key).unlink()
    # The masks of the ticket are gone, and the masks that the ticket started with are gone too.
    trained = run(setup, plan("ticket-of-ticket"))
    assert trained == ["pruning", "lottery", "ticket-of-ticket"]
    assert not has_masks(setup, "pruning")
    assert not has_masks(setup, "lottery")


def test_failed_run_fails_everything_that_depends_on_it_and_nothing_else(plan):
    agenda = plan("ticket-of-ticket", "my-lottery", "static")
    agenda.fail(agenda.jobs[1])
    assert names(agenda.failed) == ["lottery", "ticket-of-ticket"]
    assert names(agenda.left) == ["pruning", "my-lottery", "static"]
