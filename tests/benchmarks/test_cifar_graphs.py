import pytest
import torch

from benchmarks.cifar.batches import splits_for
from benchmarks.cifar.cli import main
from benchmarks.cifar.data import load_digits
from benchmarks.cifar.grid import DENSE_RUN, RunSpec
from benchmarks.cifar.train import Run

RIGL = RunSpec("rigl", "erk", 0.2, 0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs")


@needs_cuda
@pytest.mark.parametrize("spec", [RIGL, DENSE_RUN], ids=["rigl", "dense"])
def test_replayed_passes_train_as_passes_that_python_runs(protocol, spec):
    # Without dropout, whose random numbers a replay draws in another order.
    model = protocol.model.model_copy(update={"dropout": 0.0})
    training = protocol.training.model_copy(update={"batch_size": 200})
    protocol = protocol.model_copy(update={"model": model, "training": training})
    splits = splits_for(protocol, load_digits(), torch.device("cuda"))
    plain, replayed = (Run(protocol, spec, splits, cuda_graphs=graphs) for graphs in (False, True))
    for _ in range(2):
        plain.train_epoch()
        replayed.train_epoch()
    if spec is RIGL:
        assert len(replayed.optimizer.history) == len(plain.optimizer.history) >= 1
        for layer in replayed.optimizer.layers:
            assert not layer.weight[~layer.mask].any()
            assert layer.weight[layer.mask].any()
    theirs = dict(plain.model.named_parameters())
    for name, parameter in replayed.model.named_parameters():
        assert torch.isclose(parameter, theirs[name], rtol=1e-2, atol=1e-3).float().mean() > 0.98
    for mine, other in zip(replayed.curve, plain.curve, strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_graphs_without_a_gpu_are_refused(tmp_path, capsys):
    arguments = ["--all", "--preset", "smoke", "--cuda-graphs", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "--cuda-graphs needs an NVIDIA GPU" in capsys.readouterr().err
