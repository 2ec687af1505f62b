"""A run that is resumed in a fresh process equals the uninterrupted run, to the last bit."""

import operator

import pytest
import torch

from tests.integration.resume_worker import RUNS, STEPS, STOP, begin, outcome
from tests.support.processes import finish, start
from tests.support.training import train


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The results of every run, uninterrupted and resumed."""
    folder = tmp_path_factory.mktemp("resume")
    uninterrupted = []
    for number, (method, name, out_of, _) in enumerate(RUNS):
        model, optimizer = begin(method, name, out_of)
        train(model, optimizer, STOP)
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(checkpoint, folder / f"checkpoint-{number}.pt")
        train(model, optimizer, STEPS - STOP, start=STOP)
        uninterrupted.append(outcome(model, optimizer))
    finish([start("tests.integration.resume_worker", str(folder))])
    resumed = [torch.load(folder / f"outcome-{number}.pt") for number in range(len(RUNS))]
    return list(zip(uninterrupted, resumed, strict=True))


@pytest.mark.parametrize("number", range(len(RUNS)), ids=["-".join(run) for run in RUNS])
def test_fresh_process_continues_bit_for_bit(outcomes, number):
    uninterrupted, resumed = outcomes[number]
    for part in ("weights", "masks"):
        for name, tensor in uninterrupted[part].items():
            assert torch.equal(tensor, resumed[part][name]), (part, name)
    assert uninterrupted["history"] == resumed["history"]
    assert uninterrupted["steps"] == resumed["steps"] == STEPS
    assert len(resumed["history"]) >= 5
    assert resumed["history"][-1]["step"] > STOP
    for name, state in uninterrupted["state"].items():
        assert state.keys() == resumed["state"][name].keys()
        for key, value in state.items():
            assert torch.equal(value, resumed["state"][name][key]), (name, key)
    _, _, out_of, into = RUNS[number]
    if out_of == into:
        assert uninterrupted["inner"].keys() == resumed["inner"].keys() != set()
        for path, value in uninterrupted["inner"].items():
            same = torch.equal if torch.is_tensor(value) else operator.eq
            assert same(value, resumed["inner"][path]), path
