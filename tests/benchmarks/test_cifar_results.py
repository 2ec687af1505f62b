import json

import pytest

from benchmarks.cifar.records import ResultsError, append_result, read_results
from benchmarks.common.files import write_atomic

RECORDS = [{"key": "a", "accuracy": 0.5}, {"key": "b", "accuracy": 0.25}]


def test_results_come_back_in_order_one_json_object_a_line(tmp_path):
    path = tmp_path / "out" / "results.jsonl"
    for record in RECORDS:
        append_result(path, record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS
    assert read_results(path) == RECORDS


def test_results_without_a_file_are_empty(tmp_path):
    assert read_results(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("rest", ['{"key": "c", "acc', '{"key": "c"}', "\x00\x00"])
def test_line_cut_short_is_left_out_and_overwritten(tmp_path, rest):
    path = tmp_path / "results.jsonl"
    append_result(path, RECORDS[0])
    with path.open("a") as file:
        file.write(rest)
    with pytest.warns(UserWarning, match="cut short"):
        assert read_results(path) == RECORDS[:1]
    append_result(path, RECORDS[1])
    assert read_results(path) == RECORDS


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 1, is not JSON"), ("3", "not a JSON object")]
)
def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    append_result(path, RECORDS[0])
    with pytest.raises(ResultsError, match=message):
        read_results(path)


def test_value_that_json_has_no_word_for_is_refused_before_the_file_changes(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, RECORDS[0])
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_result(path, {"accuracy": float("nan")})
    assert read_results(path) == RECORDS[:1]


def test_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
