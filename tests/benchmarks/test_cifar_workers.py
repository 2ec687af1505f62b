"""Several processes: of one machine, of a cluster, and of one run."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks.cifar import cli, worker
from benchmarks.cifar.config import load_preset
from benchmarks.cifar.data import load_dataset
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.plan import Agenda, Job
from benchmarks.cifar.pools import Serial, Session
from benchmarks.cifar.records import FinishedRuns, Folder, append_result, read_results
from benchmarks.cifar.worker import Setup, do
from tests.benchmarks.conftest import write_cifar_tree, write_quick_preset
from tests.support.processes import ROOT, forkserver, start_script

SCRIPT = ROOT / "benchmarks" / "cifar" / "run.py"
PATIENCE = 300.0
SEEDS = ("0", "1", "2")
SAME = ("key", "curve", "accuracy", "weights_sha256", "density", "flops")


@pytest.fixture(autouse=True)
def ray_at_our_priority(monkeypatch):
    """By default Ray lowers the priority of its workers, which would wait for all other tests."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def options(quick_preset, cifar_tree):
    return ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--threads", "1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of one session that ran alone, of three seeds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    preset, data = write_quick_preset(folder), write_cifar_tree(folder)
    options = ["--preset", str(preset), "--data-dir", str(data), "--threads", "1"]
    assert cli.main([*options, "--all", "--seeds", *SEEDS, "--out", str(folder / "out")]) == 0
    return results(folder / "out")


def of_one_seed(records):
    return {label: record for label, record in records.items() if label.endswith("seed0")}


@pytest.fixture
def children():
    """The running processes that the test has started; the session may have others."""
    before = set(multiprocessing.active_children())
    return lambda: [child for child in multiprocessing.active_children() if child not in before]


def results(out):
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({record["key"] for record in records}) == len(records)
    return {record["label"]: {name: record[name] for name in SAME} for record in records}


def when_there_is_a_checkpoint(out, act):
    """Do something in the background as soon as a run has been saved."""

    def watch():
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if list(out.glob("checkpoints/*.pt")) and act():
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by a POSIX signal")
def test_job_of_a_killed_worker_is_done_again_and_nothing_else(
    options, undisturbed, tmp_path, capsys, children
):
    together = tmp_path / "together"

    def kill_one():
        started = children()
        if started:
            os.kill(started[0].pid, signal.SIGKILL)
        return started

    killer = when_there_is_a_checkpoint(together, kill_one)
    status = cli.main([*options, "--all", "--workers", "2", "--out", str(together)])
    killer.join()
    assert status == 0
    assert "a process died, trying again" in capsys.readouterr().out
    assert len(results(together)) == 4
    assert results(together) == of_one_seed(undisturbed)
    assert children() == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="interrupts a process by a POSIX signal")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted_session_saves_says_so_and_goes_on(
    options, tmp_path, capsys, workers, children
):
    out = tmp_path / "out"
    arguments = [*options, "--methods", "rigl", "set", "--workers", workers, "--out", str(out)]

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        return True

    # A shell that starts a test in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupter = when_there_is_a_checkpoint(out, interrupt)
    assert cli.main([*arguments, "--set", "training.epochs=40"]) == 130
    interrupter.join()
    assert "stopped; the same command continues from the saved state" in capsys.readouterr().err
    saved = list(out.glob("checkpoints/*.pt"))
    assert 1 <= len(saved) <= int(workers)
    for path in saved:
        assert torch.load(path, weights_only=True)["progress"]["curve"]
    signal.signal(signal.SIGINT, before)
    assert children() == []


@pytest.fixture
def one_job(quick_preset, cifar_tree, tmp_path):
    """A setup and a job for it."""
    setup = Setup(Folder(tmp_path / "out"), cifar_tree)
    data = load_dataset("cifar10", cifar_tree, setup.folder.cache).fingerprint()
    return setup, Job(load_preset(str(quick_preset)), RunSpec("rigl", "erk", 0.2, 0), data)


def run(setup, agenda):
    Session(Serial(setup)).run(agenda)


def test_job_that_another_session_is_running_is_left_to_it(one_job, tmp_path):
    setup, job = one_job
    with Folder(tmp_path / "out").claim(job.key) as is_mine:
        assert is_mine
        assert do(setup, job) is None
    assert not setup.folder.results.exists()
    assert do(setup, job)["key"] == job.key
    # Another worker finished it in the meantime: it is trained once.
    assert do(setup, job) is None


def test_session_waits_for_what_another_does_and_does_not_repeat_it(one_job, tmp_path):
    setup, job = one_job
    folder = Folder(tmp_path / "out")
    agenda = Agenda([job], folder)

    def other():
        with folder.claim(job.key):
            begun.set()
            time.sleep(0.5)
            append_result(folder.results, {"key": job.key})

    begun = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(PATIENCE)
    run(setup, agenda)
    thread.join()
    assert folder.results.read_text() == json.dumps({"key": job.key}) + "\n"


def test_job_that_fails_fails_only_those_that_build_on_it(one_job, monkeypatch, capsys):
    setup, job = one_job
    jobs = [
        Job(job.protocol, RunSpec(method, "erk", 0.2, 0), job.data)
        for method in ("pruning", "lottery", "static")
    ]
    original = worker.new_run

    def new_run(setup, job):
        if job.spec.method == "pruning":
            raise RuntimeError("out of luck")
        return original(setup, job)

    monkeypatch.setattr(worker, "new_run", new_run)
    agenda = Agenda(jobs, setup.folder)
    run(setup, agenda)
    assert [job.spec.method for job in agenda.failed] == ["pruning", "lottery"]
    captured = capsys.readouterr()
    assert "pruning-erk-0.2-seed0 (REDUCED protocol 'quick'): failed" in captured.out
    assert "static-erk-0.2-seed0 (REDUCED protocol 'quick'): test accuracy" in captured.out
    assert "out of luck" in captured.err


def test_masks_are_kept_until_they_are_used_and_made_again_if_they_are_gone(one_job):
    setup, job = one_job
    pruning = Job(job.protocol, RunSpec("pruning", "erk", 0.2, 0), job.data)
    lottery = Job(job.protocol, RunSpec("lottery", "erk", 0.2, 0), job.data)
    folder = setup.folder
    run(setup, Agenda([pruning], folder))
    assert folder.masks(pruning.key).exists()
    first = folder.results.read_text()
    folder.masks(pruning.key).unlink()
    agenda = Agenda([lottery], folder)
    assert [job.spec.method for job in agenda.left] == ["pruning", "lottery"]
    run(setup, agenda)
    lines = folder.results.read_text().splitlines()
    assert lines[0] + "\n" == first
    record = json.loads(lines[1])
    assert record["source"] == {"key": pruning.key, "label": "pruning-erk-0.2-seed0"}
    assert len(lines) == 2
    assert not folder.masks(pruning.key).exists()
    assert Agenda([lottery, pruning], folder).left == []


def descendants(pid, prefix):
    """Descendants of process ``pid`` whose command starts with these words."""
    parents, found = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            if command.startswith(prefix):
                found.append(int(folder.name))

    def comes_from(child):
        return child == pid or (child in parents and comes_from(parents[child]))

    return [child for child in found if comes_from(child)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker to kill in /proc")
def test_job_of_a_killed_worker_of_a_cluster_is_done_by_another(options, undisturbed, tmp_path):
    pytest.importorskip("ray")
    together = tmp_path / "together"
    arguments = [*options, "--all", "--cluster", "local", "--out", str(together)]
    process = start_script(SCRIPT, *arguments)

    def kill_one():
        workers = descendants(process.pid, "ray::do")
        if workers:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
        return workers

    killed = []
    killer = when_there_is_a_checkpoint(together, kill_one)
    output = process.communicate(PATIENCE)
    killer.join()
    assert process.returncode == 0, output
    assert killed
    assert results(together) == of_one_seed(undisturbed)


def trained(output):
    """The runs that a session has trained itself."""
    return re.findall(r"(\S+) \(REDUCED.*: test accuracy", output)


@pytest.mark.slow
@pytest.mark.parametrize("other", [["--workers", "1"], ["--cluster", "local"]])
def test_sessions_share_a_plan_and_train_nothing_twice(options, undisturbed, tmp_path, other):
    if "--cluster" in other:
        pytest.importorskip("ray")
    together = tmp_path / "together"
    arguments = [*options, "--all", "--seeds", *SEEDS]
    sessions = [
        start_script(SCRIPT, *arguments, *more, "--out", str(together))
        for more in (["--workers", "1"], other)
    ]
    outputs = [session.communicate(PATIENCE) for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], outputs
    labels = [label for output in outputs for label in trained(output)]
    assert len(undisturbed) == 12
    assert sorted(labels) == sorted(undisturbed)
    assert results(together) == undisturbed


RECORDS = 60


def test_results_of_writers_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / "results.jsonl"
    finished = FinishedRuns(path)
    records = [{"key": f"run-{number}", "text": "x" * 20_000} for number in range(RECORDS)]
    with forkserver().Pool(3) as pool:
        work = pool.starmap_async(append_result, [(path, record) for record in records], 1)
        while not work.ready():
            # The file is read while it grows: an incomplete line does not count as damage.
            finished.has("none")
        work.get()
    expected = {record["key"] for record in records}
    assert {record["key"] for record in read_results(path)} == expected
    assert all(finished.has(key) for key in expected)


def test_line_that_is_being_written_is_waited_for(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a"}\n{"key": ')
    finished = FinishedRuns(path)
    assert finished.has("a")
    assert not finished.has("b")
    path.write_text('{"key": "a"}\n{"key": "b"}\n')
    assert finished.has("b")


def test_files_of_killed_writers_are_removed_when_the_job_is_done(one_job):
    setup, job = one_job
    checkpoint = setup.folder.checkpoint(job.key)
    checkpoint.parent.mkdir(parents=True)
    (checkpoint.parent / f".{checkpoint.name}.4711").write_text("half")
    do(setup, job)
    assert list(checkpoint.parent.iterdir()) == []
