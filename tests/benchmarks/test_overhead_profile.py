"""The profile of the overhead benchmark: its floor is a real step, and its parts make a whole."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.overhead.bandwidth import lines_touched
from benchmarks.overhead.cli import main
from benchmarks.overhead.contenders import Contender, Sparsity
from benchmarks.overhead.floor import PARTS, UPDATE_PARTS, Floor, Way
from benchmarks.overhead.steps import StepTimer

CPU = torch.device("cpu")
SPARSITY = Sparsity(density=0.1, update_every=100)
OURS = "sparseopt, compact"


def make_model() -> nn.Sequential:
    """Two layers for a mask, one that is full, and biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 30), nn.Linear(30, 20))


def make_masks(model: nn.Sequential) -> dict[str, torch.Tensor]:
    masks = {name: torch.rand_like(model[int(name)].weight) < 0.1 for name in ("0", "1")}
    return {**masks, "2": torch.ones(20, 30, dtype=torch.bool)}


@pytest.mark.parametrize("optimizer", ["sgd-for-loop", "adamw-foreach", "adamw-fused"])
@pytest.mark.parametrize("way", [Way(None, 1), Way(100, 2)])
def test_the_floor_steps_live_weights_as_the_plain_optimizer_does(optimizer: str, way: Way) -> None:
    plain = Contender(make_model(), optimizer, SPARSITY)
    masks = make_masks(plain.model)
    floor = Floor(make_model(), optimizer, SPARSITY, masks=masks, way=way)
    names = [name for name, _ in plain.model.named_parameters()]
    timer = StepTimer(names, 2000, 100, CPU)
    for index in range(3):
        timer(plain, index)
        timer(floor, index)
    for name, expected, found in zip(
        names, plain.model.parameters(), floor.model.parameters(), strict=True
    ):
        mask = masks.get(name.removesuffix(".weight"), torch.ones_like(expected, dtype=torch.bool))
        torch.testing.assert_close(found[mask], expected[mask])
        assert not found[~mask].any()


def test_the_floor_gathers_the_weights_and_gradients_where_masks_are_true() -> None:
    model = make_model()
    masks = make_masks(model)
    floor = Floor(model, "sgd-for-loop", SPARSITY, masks=masks, way=Way(None, 1))
    (piece,) = floor.pieces
    before = torch.cat([model[int(name)].weight.detach()[masks[name]] for name in ("0", "1")])
    timer = StepTimer([name for name, _ in model.named_parameters()], 2000, 100, CPU)
    timer.give_gradients(floor, 0)
    expected = torch.cat([model[int(name)].weight.grad[masks[name]] for name in ("0", "1")])
    piece.optimizer.param_groups[0]["lr"] = 0.0
    floor.step()
    assert torch.equal(piece.live.detach(), before)
    assert torch.equal(piece.live.grad, expected)
    assert floor.took.keys() == set(PARTS)


def test_a_cache_line_is_touched_if_any_of_its_sixteen_weights_is_live() -> None:
    mask = torch.zeros(5, 20, dtype=torch.bool)
    mask.view(-1)[[0, 15, 16, 99]] = True
    # Of 100 weights, the last line has 4.
    assert lines_touched({"layer": mask}) == 3 / 7


@pytest.mark.slow
def test_a_profile_lists_operators_and_functions_whose_shares_make_a_whole(tmp_path: Path) -> None:
    arguments = ["--quick", "--device", "cpu", "--densities", "0.1", "--models", "gpt"]
    arguments += ["--optimizers", "adamw-for-loop", "--figures", "profile"]
    arguments += ["--contenders", OURS, "--out", str(tmp_path)]
    assert main(arguments) == 0
    (entry,) = json.loads((tmp_path / "results.json").read_text())["entries"]

    assert set(entry["operators"]) == {"plain", OURS}
    phases = {"step": entry["operators"]["plain"]["step"], **entry["operators"][OURS]}
    for found in (*phases.values(), *entry["operators"][OURS].values()):
        rows = [*found["operators"], found["outside"], found["others"]]
        assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=0.01)
        assert all(0 <= row["share"] <= 1 and row["milliseconds"] >= 0 for row in rows)
    ours = {row["name"] for row in entry["operators"][OURS]["step"]["operators"]}
    assert {"aten::index_select", "aten::sqrt"} <= ours
    assert 0 < sum(row["share"] for row in entry["functions"]) <= 1
    assert all(Path(row["name"]).is_absolute() is False for row in entry["functions"])

    for parts in entry["floor"].values():
        assert all(parts[part]["milliseconds"] > 0 for part in PARTS)
        assert 0 < parts["step"]["ratio"]["q1"] <= parts["step"]["ratio"]["q3"]
    for parts in entry["choice"].values():
        assert all(parts[part]["milliseconds"] > 0 for part in UPDATE_PARTS)
    # Live weights are drawn at random.
    assert entry["lines"] == pytest.approx(1 - 0.9**16, abs=0.1)
    assert entry["times"][OURS]["update"]["ratio"]["count"] > 0

    report = (tmp_path / "report.md").read_text()
    assert "### Where the time goes" in report
    assert "`aten::index_select`" in report
    assert "floor, one parameter, 1 thread" in report
    assert "adamw-for-loop | <= 0.25 |" in (tmp_path / "why.md").read_text()
