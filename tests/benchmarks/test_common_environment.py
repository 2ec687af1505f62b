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


def test_environment_is_a_line_that_names_the_processes_of_torchrun_too():
    about = environment.describe_environment(torch.device("cpu"))
    line = environment.in_words(about)
    assert line.startswith(f"sparseopt {sparseopt.__version__}, torch {torch.__version__}, numpy ")
    assert line.endswith(f"; {about['processor']}, {about['threads']} threads, on cpu")
    of_two = environment.in_words(environment.describe_environment(torch.device("cpu"), 2))
    assert of_two == line.replace(" threads, on", " threads in each of 2 processes, on")
