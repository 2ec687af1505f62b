import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.accounting import count
from benchmarks.cifar.batches import make_splits
from benchmarks.cifar.data import load_digits
from benchmarks.cifar.protocol import load_preset
from benchmarks.cifar.runspec import RunSpec
from benchmarks.cifar.session import Folder, Session
from benchmarks.cifar.training import Run, Splits

RIGL = RunSpec("rigl", "erk", 0.2, 0)
BIASES = 10


@pytest.fixture(scope="module")
def splits():
    """The first 300 digits, and 45 to test on."""
    digits = load_digits()
    digits = type(digits)(
        digits.train_images[:300],
        digits.train_labels[:300],
        digits.test_images[:45],
        digits.test_labels[:45],
    )
    augmentation = load_preset("smoke").augmentation
    parts = make_splits(digits, 0.1, augmentation, torch.device("cpu"), channels_last=True)
    return Splits(*parts, digits.num_classes)


@pytest.fixture
def protocol(tiny_preset):
    return load_preset(str(tiny_preset))


def torch_flops(model):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def masked_flops(model, masks):
    """Two FLOPs for every live weight at every position of its output, by forward hooks."""
    total = 0
    names = {module: name for name, module in model.named_modules()}

    def add(module, _, output):
        nonlocal total
        live = int(masks[f"{names[module]}.weight"].sum())
        total += 2 * live * math.prod(output.shape[2:])

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("size", [100, 7, 1])
def test_accuracy_is_over_images_whatever_the_batches(protocol, splits, size):
    # Batches of 7 leave one of 3 images, which must not count as much as the others.
    training = dataclasses.replace(protocol.training, eval_batch_size=size)
    run = Run(dataclasses.replace(protocol, training=training), RIGL, splits)
    run.train_epoch(lambda progress: None)
    images, labels = next(iter(splits.test.in_order(45)))
    with torch.no_grad():
        predicted = run.model.eval()(images).argmax(1)
    assert run.accuracy(splits.test) == int((predicted == labels).sum()) / 45


def test_first_epoch_learns_and_is_recorded(protocol, splits):
    run = Run(protocol, RIGL, splits)
    shown = []
    run.train_epoch(shown.append)
    assert [progress.step for progress in shown] == [1, 2]
    (entry,) = run.outcome.curve
    assert entry["epoch"] == 1
    assert entry["validation_accuracy"] == run.accuracy(splits.validation)
    assert entry["density"] == pytest.approx(0.2, abs=1e-3)
    # Two steps from random weights: about the loss of a guess among ten.
    assert entry["train_loss"] == pytest.approx(math.log(10), rel=0.3)


def test_every_method_sees_the_same_images_in_the_same_order(protocol, splits):
    orders = []
    for spec in (RIGL, RunSpec("dense", None, None, 0), RunSpec("set", "uniform", 0.1, 0)):
        generator = Run(protocol, spec, splits).data_generator
        orders.append([y.tolist() for _, y in splits.train.shuffled(64, generator)])
    assert orders[0] == orders[1] == orders[2]


def test_costs_of_the_dense_methods(protocol, splits):
    dense = Run(protocol, RunSpec("dense", None, None, 0), splits)
    small = Run(protocol, RunSpec("small-dense", None, 0.2, 0), splits)
    full = torch_flops(dense.model) + BIASES
    for run in (dense, small):
        costs = count(run)
        own = torch_flops(run.model) + BIASES
        assert costs["flops"]["inference"] == own
        assert costs["flops"]["train"] == costs["flops"]["train_measured"] == 3 * own
        assert costs["flops"]["dense_inference"] == full
        assert costs["flops"]["dense_train"] == 3 * full
        total = sum(p.numel() for p in run.model.parameters())
        assert costs["parameters"] == {"total": total, "live": total}
        assert costs["updates"] is None


def test_counting_leaves_a_dense_run_as_it_was(protocol, splits):
    run = Run(protocol, RunSpec("dense", None, None, 0), splits)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    count(run)
    assert all(torch.equal(before[n], v) for n, v in run.model.state_dict().items())
    assert not any(p._post_accumulate_grad_hooks for p in run.model.parameters())


def test_costs_of_a_sparse_method(protocol, splits):
    run = Run(protocol, RIGL, splits)
    for _ in range(2):
        run.train_epoch(lambda progress: None)
    costs = count(run)
    masks = run.optimizer.masks
    sparse = masked_flops(run.model, masks) + BIASES
    dense = torch_flops(run.model) + BIASES
    assert costs["flops"]["inference"] == sparse
    assert costs["flops"]["dense_inference"] == dense
    interval = protocol.sparsity.delta_t
    formula = (3 * interval * sparse + 2 * sparse + dense) / (interval + 1)
    assert costs["flops"]["train"] == pytest.approx(formula)
    # Four steps, of which the third was an update.
    assert costs["updates"]["count"] == 1
    assert costs["updates"]["skipped"] == 0
    assert 0.2 < costs["updates"]["explored"] < 0.5
    shapes = {name: weight.numel() for name, weight in run.model.named_parameters()}
    assert {layer["name"]: layer["numel"] for layer in costs["layers"]}.items() <= shapes.items()
    explored = sum(layer["ever_live"] for layer in costs["layers"])
    assert explored / sum(layer["numel"] for layer in costs["layers"]) == pytest.approx(
        costs["updates"]["explored"]
    )
    live = {name: int(weight.count_nonzero()) for name, weight in run.model.named_parameters()}
    # A grown weight is zero until the next step that is no update.
    assert all(live[layer["name"]] <= layer["live"] for layer in costs["layers"])
    assert len(costs["history"]) == costs["updates"]["count"]
    assert costs["history"][-1]["explored"] == costs["updates"]["explored"]
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(p.numel() for p in run.model.parameters())
    assert costs["parameters"] == {"total": total, "live": total - dropped}


def test_run_that_fails_leaves_the_others_to_run(protocol, splits, tmp_path, monkeypatch, capsys):
    specs = [RunSpec("dense", None, None, seed) for seed in (0, 1, 2)]
    session = Session(protocol, specs, splits, "data", Folder(tmp_path))

    def run_one(self, spec, title, seconds_after):
        if spec.seed == 1:
            raise RuntimeError("out of luck")
        return {"accuracy": {"test": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(Session, "run_one", run_one)
    assert session.run_all(dict.fromkeys(specs, 1.0)) == [specs[1]]
    captured = capsys.readouterr()
    assert "dense-seed1 (REDUCED protocol 'tiny'): failed" in captured.out
    assert "dense-seed2 (REDUCED protocol 'tiny'): test accuracy 50.00%" in captured.out
    assert "out of luck" in captured.err


def test_checkpoint_is_gone_when_the_result_is_written(protocol, splits, tmp_path):
    folder = Folder(tmp_path)
    session = Session(protocol, [RIGL], splits, "data", folder)
    record = session.run_one(RIGL, "title", 0.0)
    assert record["steps"] == 6
    assert [entry["epoch"] for entry in record["curve"]] == [1, 2, 3]
    assert record["accuracy"]["validation"] == record["curve"][-1]["validation_accuracy"]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert Session(protocol, [RIGL], splits, "data", folder).left == []
    assert Session(protocol, [RIGL], splits, "other data", folder).left == [RIGL]
