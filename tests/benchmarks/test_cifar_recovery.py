"""Sessions that are killed and started again end like uninterrupted sessions."""

import json
import os
import random
import re
import signal
import time

import pytest

from tests.support.processes import ROOT, start_script

SCRIPT = ROOT / "benchmarks" / "cifar" / "run.py"
PATIENCE = 3600.0
KILLS = 10
SAME = ("curve", "accuracy", "weights_sha256", "density", "flops", "layers", "history")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kills a process by a POSIX signal"),
]


def start(folder, *options):
    """Start the script as a user does, in an empty folder."""
    folder.mkdir(exist_ok=True)
    return start_script(SCRIPT, *map(str, options), folder=folder)


def finish(process):
    output = process.communicate(PATIENCE)
    assert process.returncode == 0, output
    return output


def kill_when_it_got_on(process, out, events, delay):
    """SIGKILL some time after a number of new checkpoints and results; return the output."""
    deadline = time.monotonic() + PATIENCE
    seen = progress(out)
    while events and process.returncode is None:
        assert time.monotonic() < deadline
        now = progress(out)
        events -= bool(now - seen)
        seen = now
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    output = process.communicate(PATIENCE)
    # It may have been done by then.
    assert process.returncode in (0, -signal.SIGKILL), output
    return output


def progress(out):
    """Checkpoints and results by time of writing, so that each write counts as a new file."""
    found = set()
    for path in [*out.glob("checkpoints/*.pt"), *out.glob("results.jsonl")]:
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def results(out):
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    by_key = {record["key"]: {name: record[name] for name in SAME} for record in records}
    assert len(by_key) == len(records)
    return by_key


def tables(out):
    """The report without times and without the state of the checkout."""
    text = (out / "report.md").read_text()
    parts = re.split(r"^(?=#{2,3} )", text, flags=re.MULTILINE)
    changing = ("### Measured times, and structured sparsity", "### Made with")
    text = "".join(part for part in parts if not part.startswith(changing))
    # Minutes, seconds a step and milliseconds of a step.
    times = r"\| \d+\.\d \| [\d.e-]+ \| \d+ \|$"
    return [re.sub(times, "|", line) for line in text.splitlines()]


def check_that_kills_change_nothing(options, tmp_path, events):
    whole, broken, folder = tmp_path / "whole", tmp_path / "broken", tmp_path / "cwd"
    finish(start(folder, *options, "--out", whole))
    moments = random.Random(0)
    said = [
        kill_when_it_got_on(
            start(folder, *options, "--out", broken), broken, events, moments.uniform(0, 0.3)
        )
        for _ in range(KILLS)
    ]
    said.append(finish(start(folder, *options, "--out", broken)))
    assert any("resumed at step" in output for output in said)
    assert results(broken) == results(whole)
    assert tables(broken) == tables(whole)
    left = [path.relative_to(broken) for path in broken.rglob("*") if path.is_file()]
    assert not [path for path in left if path.parts[0] == "checkpoints"]
    assert not [path for path in left if re.match(r"\..*\.\d+$", path.name)]
    assert list(folder.iterdir()) == []


def test_session_killed_ten_times_ends_as_an_undisturbed_one(quick_preset, cifar_tree, tmp_path):
    options = ["--preset", quick_preset, "--all", "--data-dir", cifar_tree, "--threads", "1"]
    # Four runs of so many epochs have a checkpoint for every kill and more.
    options += ["--set", "training.epochs=10"]
    check_that_kills_change_nothing(options, tmp_path, events=1)


@pytest.mark.skipif(
    "SPARSEOPT_LONG_TESTS" not in os.environ, reason="takes twice as long as the smoke preset"
)
def test_smoke_preset_killed_ten_times_ends_with_the_same_tables(tmp_path):
    options = ["--preset", "smoke", "--all", "--workers", "2", "--threads", "2"]
    check_that_kills_change_nothing(options, tmp_path, events=20)
