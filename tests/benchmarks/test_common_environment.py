import platform
import shutil
import subprocess

import pytest
import torch

import sparseopt
from benchmarks.common import environment


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    assert environment.git_commit() is None
    git(tmp_path, "init")
    (tmp_path / "code").write_text("one")
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "v1")
    assert environment.git_commit() == head
    (tmp_path / "code").write_text("two")
    assert environment.git_commit() == f"{head}-dirty"


def test_environment_names_versions_and_hardware():
    about = environment.describe_environment(torch.device("cpu"))
    assert about["torch"] == torch.__version__
    assert about["sparseopt"] == sparseopt.__version__
    assert about["python"] == platform.python_version()
    assert about["threads"] == torch.get_num_threads()
    assert about["device"] == "cpu"
    assert about["processor"]


def test_environment_is_a_line_and_the_machines_of_several_are_named_once():
    about = environment.describe_environment(torch.device("cpu")) | {"processor": "P", "threads": 2}
    line = environment.in_words(about)
    assert line.startswith(f"sparseopt {sparseopt.__version__}, torch {torch.__version__}, numpy ")
    assert line.endswith("; P, 2 threads, on cpu")
    found = environment.machines([about, about, about | {"threads": 1, "torch": "T"}])
    assert found == f"P, 2 threads, on cpu, torch {torch.__version__}; P, 1 thread, on cpu, torch T"


def test_environment_is_named_by_figure_only_if_environments_differ():
    assert environment.measured_on([]) == []
    assert environment.measured_on([("a", "P"), ("b", "P")]) == ["On P.", ""]
    (text, _) = environment.measured_on([("a", "P"), ("b", "Q"), ("c", "P")])
    assert text == "Measured with a, c on P; b on Q."
