"""A run with the tutorial's second method is killed half-way, and ends with the same bits."""

import os
import signal

import pytest
import torch

from tests.docs.own_method_worker import METHOD, STEPS
from tests.support.processes import finish, start

MODULE = "tests.docs.own_method_worker"


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a POSIX signal")
def test_killed_and_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finish([start(MODULE, str(whole))])

    process = start(MODULE, str(killed), "23")
    output = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    at_the_kill = torch.load(killed / "checkpoint.pt")
    assert at_the_kill["optimizer"]["param_groups"][0]["sparseopt"]["steps"] == 20
    finish([start(MODULE, str(killed))])

    expected, resumed = (torch.load(folder / "checkpoint.pt") for folder in (whole, killed))
    for name, tensor in expected["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    ours, theirs = (one["optimizer"]["param_groups"][0]["sparseopt"] for one in (expected, resumed))
    assert ours["method"] == METHOD
    assert ours["steps"] == theirs["steps"] == STEPS
    assert ours["history"] == theirs["history"]
    kept = 0
    for index, state in expected["optimizer"]["state"].items():
        for key, tensor in state.items():
            assert torch.equal(tensor, resumed["optimizer"]["state"][index][key]), (index, key)
            kept += key == "sparse_state.salience" and bool(tensor.any())
    assert kept == 2
