"""The picture shows what was measured, and the most informative results."""

import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import picture
from benchmarks.cifar.overview import FILE
from tests.benchmarks.test_cifar_report import lines_of_accuracies

MINUTE = 60_000


def written(folder, name, lines):
    (folder / name).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / name / FILE).write_text(text, encoding="utf-8")


def timed(lines, **milliseconds):
    """The lines of some methods, which take so many milliseconds a step."""
    chosen = [line for line in lines if line["run"]["method"] in milliseconds]
    for line in chosen:
        ms = milliseconds[line["run"]["method"]]
        line["cpu"] = {"seconds": 1.0, "quiet_ms_a_step": ms}
        line["protocol"]["settings"].setdefault("training", {})
    return chosen


def test_points_stand_at_their_time_and_accuracy(tmp_path):
    lines = timed(lines_of_accuracies(), dense=500.0, rigl=200.0)
    written(tmp_path, "a", lines)
    points = {one.method: one for one in picture.best_source(tmp_path).points}
    steps = lines[0]["steps"]
    assert points["dense"].time == pytest.approx(500 * steps / MINUTE)
    assert points["rigl"].time == pytest.approx(200 * steps / MINUTE)
    rigl = [line["accuracy"]["test"] for line in lines if line["run"]["method"] == "rigl"]
    assert points["rigl"].accuracy == pytest.approx(100 * sum(rigl) / len(rigl))


@pytest.mark.parametrize("reduced", [False, True])
def test_caption_and_words_say_that_a_protocol_is_reduced(tmp_path, reduced):
    written(tmp_path, "a", timed(lines_of_accuracies(reduced=reduced), dense=500.0, rigl=200.0))
    source = picture.best_source(tmp_path)
    assert ("(a reduced protocol)" in source.caption()) == reduced
    assert ("(a reduced protocol)" in source.words) == reduced


def test_caption_says_how_many_seeds_there_are(tmp_path):
    lines = timed(lines_of_accuracies(), dense=500.0, rigl=200.0)
    written(tmp_path / "all", "a", lines)
    assert "deviation of up to 3 seeds" in picture.best_source(tmp_path / "all").caption()
    written(tmp_path / "one", "a", [one for one in lines if one["run"]["seed"] == 0])
    assert "one seed each" in picture.best_source(tmp_path / "one").caption()


def test_results_with_the_dense_network_are_shown_before_others(tmp_path):
    written(tmp_path, "a-sparse", timed(lines_of_accuracies(), rigl=200.0, set=200.0, static=200.0))
    written(tmp_path, "b-both", timed(lines_of_accuracies(), dense=500.0, rigl=200.0))
    assert picture.best_source(tmp_path).folder == "b-both"


def test_timed_runs_are_drawn_at_a_multiple_of_the_dense_networks_time(tmp_path):
    lines = timed(lines_of_accuracies(), dense=500.0, rigl=100.0, static=100.0)
    written(tmp_path, "a", lines)
    timings = [
        {
            "run_key": line["key"],
            "environment": {"processor": "Some CPU", "device": "cpu", "threads": 1},
            "training": {"batch": 128, "ratio": {"median": 0.4, "q1": 0.3, "q3": 0.5}},
            "inference": [],
        }
        for line in lines
        if line["run"]["method"] == "rigl"
    ]
    text = "".join(json.dumps(one) + "\n" for one in timings)
    (tmp_path / "a" / "timings.jsonl").write_text(text, encoding="utf-8")
    source = picture.best_source(tmp_path)
    times = {one.method: one.time for one in source.points}
    assert times == pytest.approx({"dense": 1.0, "rigl": 0.4})
    assert "times on Some CPU, 1 thread" in source.words
    assert source.unit is picture.DENSE


def test_only_the_processor_of_the_times_is_named(tmp_path):
    lines = timed(lines_of_accuracies(), dense=500.0, rigl=200.0)
    for line in lines:
        is_elsewhere = line["run"]["method"] == "rigl" and line["run"]["seed"] == 0
        processor = "Other CPU" if is_elsewhere else "Some CPU"
        line["environment"] = {**line["environment"], "processor": processor}
    written(tmp_path, "a", lines)
    words = picture.best_source(tmp_path).words
    assert "Some CPU" in words
    assert "Other CPU" not in words


def test_results_with_speed_up_are_shown_before_others(tmp_path):
    written(tmp_path, "a-plain", timed(lines_of_accuracies(), dense=500.0, rigl=400.0))
    fast = timed(lines_of_accuracies(), rigl=200.0)
    for line in fast:
        line["protocol"]["settings"]["training"] = {"speed_up": True}
    written(tmp_path, "b-fast", fast)
    assert picture.best_source(tmp_path).folder == "b-fast"


def test_protocols_that_differ_in_speed_up_alone_are_one_picture(tmp_path):
    both = []
    for is_fast in (False, True):
        for line in timed(lines_of_accuracies(), rigl=200.0 if is_fast else 500.0):
            line["protocol"]["settings"]["training"] = {"speed_up": True} if is_fast else {}
            both.append(line)
    written(tmp_path, "a", both)
    labels = {one.label for one in picture.best_source(tmp_path).points}
    assert labels == {"RigL, with speed_up", "RigL, without speed_up"}


def test_picture_needs_a_run_that_recorded_its_time(tmp_path):
    written(tmp_path, "a", timed(lines_of_accuracies(), dense=500.0)[:1])
    (tmp_path / "a" / FILE).write_text(json.dumps(lines_of_accuracies()[0]) + "\n")
    with pytest.raises(LookupError, match="was timed or recorded"):
        picture.best_source(tmp_path)


def test_both_themes_are_drawn_to_the_same_bytes_each_time():
    source = picture.best_source()
    first, again = picture.written(source), picture.written(source)
    assert first == again
    assert len(first) == len(picture.THEMES)
    for content in first.values():
        assert ET.fromstring(content).tag.endswith("svg")
