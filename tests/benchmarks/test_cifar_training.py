import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.accounting import count
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.structure import load_tensors, save_tensors
from benchmarks.cifar.train import Run, weights_hash
from sparseopt import speed_up
from sparseopt.speedup import kernels
from tests.benchmarks.conftest import end_after
from tests.support.own_methods import FrequentGradient, SmoothedSalience

RIGL = RunSpec("rigl", "erk", 0.2, 0)
BIASES = 10


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
    training = protocol.training.model_copy(update={"eval_batch_size": size})
    run = Run(protocol.model_copy(update={"training": training}), RIGL, splits)
    run.train_epoch()
    images, labels = next(iter(splits.test.in_order(45)))
    with torch.no_grad():
        predicted = run.model.eval()(images).argmax(1)
    assert run.accuracy(splits.test) == int((predicted == labels).sum()) / 45


def test_first_epoch_learns_and_is_recorded(protocol, splits):
    run = Run(protocol, RIGL, splits)
    run.train_epoch()
    (entry,) = run.curve
    assert entry["epoch"] == 1
    assert entry["validation_accuracy"] == run.accuracy(splits.validation)
    assert entry["density"] == pytest.approx(0.2, abs=1e-3)
    # Two steps from random weights: about the loss of a guess among ten.
    assert entry["train_loss"] == pytest.approx(math.log(10), rel=0.3)


def test_every_method_sees_the_same_images_in_the_same_order(protocol, splits):
    orders = []
    for spec in (RIGL, RunSpec("dense", None, None, 0), RunSpec("set", "uniform", 0.1, 0)):
        generator = Run(protocol, spec, splits).data_generator
        orders.append([labels.tolist() for _, labels in splits.train.shuffled(64, generator)])
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
        run.train_epoch()
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


def finished(protocol, splits, folder, spec=RIGL, **options):
    run = Run(protocol, spec, splits, **options)
    run.finish(folder / "checkpoint.pt")
    return run


@pytest.mark.parametrize("after", [1, 3])
def test_run_that_is_stopped_within_an_epoch_ends_with_the_same_bits(
    protocol, splits, tmp_path, after, monkeypatch
):
    whole = finished(protocol, splits, tmp_path / "whole")
    checkpoint = tmp_path / "broken.pt"
    end_after(after, Run(protocol, RIGL, splits), checkpoint, monkeypatch)
    torch.manual_seed(99)
    resumed = Run(protocol, RIGL, splits)
    # An epoch has two steps.
    assert resumed.resume(checkpoint) == (after > 2)
    assert resumed.step == after // 2 * 2
    resumed.finish(checkpoint)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.curve == whole.curve
    assert resumed.accuracy(splits.test) == whole.accuracy(splits.test)


@pytest.mark.parametrize("method", [SmoothedSalience.name, FrequentGradient.name])
def test_run_of_a_method_that_keeps_state_is_resumed_with_it(
    protocol, splits, tmp_path, method, monkeypatch
):
    # Six steps: an update at the third, from what was observed in both epochs.
    spec = dataclasses.replace(RIGL, method=method)
    whole = finished(protocol, splits, tmp_path / "whole", spec)
    checkpoint = tmp_path / "broken.pt"
    end_after(3, Run(protocol, spec, splits), checkpoint, monkeypatch)
    torch.manual_seed(99)
    resumed = Run(protocol, spec, splits)
    assert resumed.resume(checkpoint)
    assert resumed.step == 2
    resumed.finish(checkpoint)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.curve == whole.curve
    assert resumed.optimizer.history == whole.optimizer.history != []
    masks = whole.optimizer.masks
    assert all(torch.equal(masks[name], mask) for name, mask in resumed.optimizer.masks.items())


FAST = ("groups.0.0.conv2", "groups.1.0.conv2", "groups.2.0.conv2")


def test_run_on_live_weights_only_is_resumed_with_its_plan(protocol, splits, tmp_path, monkeypatch):
    if not kernels.available():
        pytest.skip(f"no kernels: {kernels.why_not()}")
    chosen = {name: {"200x16x32x32": "live"} for name in FAST}
    given = []

    def measured(model, optimizer, *, plan):
        given.append(plan)
        return speed_up(model, optimizer, plan=chosen if plan is None else plan)

    monkeypatch.setattr("benchmarks.cifar.train.speed_up", measured)
    training = protocol.training.model_copy(update={"speed_up": True})
    fast = protocol.model_copy(update={"training": training})
    whole = finished(fast, splits, tmp_path / "whole")
    checkpoint = tmp_path / "broken.pt"
    end_after(3, Run(fast, RIGL, splits), checkpoint, monkeypatch)
    resumed = Run(fast, RIGL, splits)
    assert resumed.resume(checkpoint)
    resumed.finish(checkpoint)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    dense = finished(protocol, splits, tmp_path / "dense")
    assert weights_hash(dense.model) != weights_hash(whole.model)
    assert given == [None, None, None, chosen]


def test_dense_runs_have_nothing_to_speed_up(protocol, splits):
    training = protocol.training.model_copy(update={"speed_up": True})
    fast = protocol.model_copy(update={"training": training})
    assert Run(fast, RunSpec("dense", None, None, 0), splits).speed_up is None
    assert Run(fast, RIGL, splits).speed_up.is_active


def test_longer_runs_have_as_many_more_steps(protocol, splits):
    steps = [
        Run(protocol, RunSpec(m, "erk", 0.2, 0), splits).total_steps
        for m in ("rigl", "rigl-2x", "rigl-3x")
    ]
    assert steps == [6, 12, 18]


def test_overrides_reach_the_optimizer(protocol, splits):
    run = Run(protocol, dataclasses.replace(RIGL, alpha=0.5, delta_t=2, lr=0.02), splits)
    run.train_epoch()
    run.train_epoch()
    # The third quarter of six steps ends before the fourth.
    (record,) = run.optimizer.history
    assert record.step == 2
    assert record.fraction == pytest.approx(0.25 * (1 + math.cos(math.pi * 2 / 4)))
    assert max(entry["lr"] for entry in run.curve) <= 0.02


def test_labels_are_smoothed_as_much_as_the_protocol_says(protocol, splits):
    training = protocol.training.model_copy(update={"label_smoothing": 0.1})
    smooth = Run(protocol.model_copy(update={"training": training}), RIGL, splits)
    images, labels = next(splits.train.shuffled(200, torch.Generator().manual_seed(0)))
    smooth.model.train()
    torch.manual_seed(7)
    loss = smooth.train_step(images, labels)
    fresh = Run(protocol, RIGL, splits)
    fresh.model.train()
    torch.manual_seed(7)
    logarithms = torch.log_softmax(fresh.model(images), 1)
    hit = logarithms.gather(1, labels[:, None]).mean()
    torch.testing.assert_close(loss, -(0.9 * hit + 0.1 * logarithms.mean()))


def test_lottery_retrains_the_initial_weights_under_the_masks_of_pruning(
    protocol, splits, tmp_path
):
    pruned = finished(protocol, splits, tmp_path, RunSpec("pruning", "erk", 0.2, 0))
    ticket = {layer.name: layer.mask.clone() for layer in pruned.optimizer.layers}
    lottery = Run(protocol, RunSpec("lottery", "erk", 0.2, 0), splits, ticket)
    start = Run(protocol, RunSpec("dense", None, None, 0), splits).model.state_dict()
    for name, weight in lottery.model.named_parameters():
        mask = ticket.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight, torch.where(mask, start[name], 0))
    lottery.train_epoch()
    assert all(torch.equal(lottery.optimizer.masks[name], mask) for name, mask in ticket.items())


def test_reinitialised_runs_start_with_given_masks_and_move_them(protocol, splits, tmp_path):
    found = finished(protocol, splits, tmp_path, RunSpec("rigl-sm", "erk", 0.2, 0)).optimizer.masks
    masks = {name: mask.clone() for name, mask in found.items()}
    run = Run(protocol, RunSpec("rigl-reinit", "erk", 0.2, 0), splits, masks)
    assert all(torch.equal(run.optimizer.masks[name], mask) for name, mask in masks.items())
    run.train_epoch()
    run.train_epoch()
    assert not all(torch.equal(run.optimizer.masks[name], mask) for name, mask in masks.items())


def test_masks_come_back_from_disk(tmp_path):
    masks = {
        "conv": torch.rand(3, 5, 3, 3) < 0.3,
        "full": torch.ones(7, dtype=torch.bool),
        "one": torch.rand(8, 8) < 0.5,
    }
    save_tensors(tmp_path / "masks.npz", masks)
    loaded = load_tensors(tmp_path / "masks.npz")
    assert loaded.keys() == masks.keys()
    for name, mask in masks.items():
        assert loaded[name].dtype == torch.bool
        assert torch.equal(loaded[name], mask)


def test_settings_of_a_method_reach_it(protocol, splits):
    spec = dataclasses.replace(RIGL, method="granet", settings=(("initial", 0.8),))
    run = Run(protocol, spec, splits)
    assert run.density == pytest.approx(0.8, abs=1e-3)
    assert spec.label == "granet-erk-0.2-initial0.8-seed0"
    assert spec.key(protocol, "a") != dataclasses.replace(spec, settings=()).key(protocol, "a")
