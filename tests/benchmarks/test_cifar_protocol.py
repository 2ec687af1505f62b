import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.cifar.config import PRESETS, Protocol, load_preset, load_protocols
from benchmarks.cifar.grid import Choices, RunSpec, Study, expand
from benchmarks.cifar.models import build_model
from benchmarks.cifar.settings import ProtocolError, build
from benchmarks.cifar.train import build_optimizer, build_scheduler

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "cifar" / "results"


def values(section):
    return tuple(getattr(section, name) for name in type(section).model_fields)


def test_paper_preset_is_the_reports_protocol():
    protocol = load_preset("paper")
    assert (protocol.dataset, protocol.reduced) == ("cifar10", False)
    assert values(protocol.model) == (22, 2, 0.3, "wrn")
    training = protocol.training
    assert (training.epochs, training.batch_size, training.validation_fraction) == (250, 128, 0.1)
    assert training.epochs * -(-45_000 // training.batch_size) == 88_000
    assert values(protocol.augmentation) == (4, True, None)
    assert values(protocol.optimizer) == (0.1, 0.9, True, 5e-4)
    assert values(protocol.sparsity) == (100, 0.3, 0.75)
    assert protocol.choices.seeds == (0, 1, 2)
    assert set(protocol.choices.densities) == {0.1, 0.2}


def test_paper_preset_has_the_reports_second_protocol():
    first, second = load_protocols("paper")
    assert (second.name, second.dataset, second.reduced) == ("paper-cifar100", "cifar100", False)
    assert values(second.model) == (50, 64, 0.0, "resnet")
    assert second.training == first.training.model_copy(update={"label_smoothing": 0.1})
    assert values(second.augmentation) == (0, True, 0.08)
    assert second.optimizer == first.optimizer.model_copy(update={"weight_decay": 1e-4})
    assert second.sparsity == first.sparsity
    assert second.choices.seeds == (0, 1, 2)


def test_reports_search_and_sweep_are_in_the_paper_preset():
    choices = load_preset("paper").choices
    search = choices.search
    assert (search.method, search.trials, search.seeds) == ("rigl", 15, (0, 1, 2))
    assert (search.alpha, search.delta_t) == ((0.1, 0.6), (50, 1000, 50))
    assert set(search.densities) == {0.1, 0.2, 0.5}
    assert len(search.inits) == 2
    (sweep,) = [study for study in choices.studies if study.name == "learning-rate"]
    assert set(sweep.lrs) == {0.1, 0.05, 0.01, 0.005}
    every = {density for study in choices.studies for density in study.densities}
    assert every | set(choices.densities) == {0.05, 0.1, 0.2, 0.5}


def test_presets_shorter_than_the_report_are_reduced_and_labels_say_so():
    for name in PRESETS:
        protocol = load_preset(name)
        assert protocol.reduced is (name not in ("paper", "full"))
        assert ("REDUCED" in protocol.label) is protocol.reduced


def learning_rates(spec, steps, preset="paper"):
    """The learning rate of each step, with the calls of the training loop."""
    protocol = load_preset(preset)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=protocol.optimizer.lr)
    scheduler = build_scheduler(optimizer, protocol, spec, 88_000)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_learning_rate_of_the_paper_falls_every_30000_steps():
    rates = learning_rates(RunSpec("rigl", "erk", 0.1, 0), 60_001)
    assert rates[0] == rates[29_999] == 0.1
    assert rates[30_000] == rates[59_999] == pytest.approx(0.02)
    assert rates[60_000] == pytest.approx(0.004)


def test_learning_rate_on_cifar100_warms_up_and_falls_every_20000_steps_after():
    rates = learning_rates(RunSpec("rigl", "erk", 0.1, 0), 61_761, preset="paper-cifar100")
    assert rates[0] == pytest.approx(0.1 / 1760)
    assert rates[1759] == rates[1760] == rates[21_759] == pytest.approx(0.1)
    assert rates[21_760] == rates[41_759] == pytest.approx(0.02)
    assert rates[41_760] == pytest.approx(0.004)
    assert rates[61_760] == pytest.approx(0.0008)


@pytest.mark.parametrize(("method", "times"), [("rigl-2x", 2), ("rigl-3x", 3)])
def test_longer_training_stretches_the_learning_rate_and_the_mask_updates(method, times):
    protocol = load_preset("paper")
    spec = RunSpec(method, "erk", 0.1, 0)
    rates = learning_rates(spec, times * 30_000 + 1)
    assert rates[times * 30_000 - 1] == 0.1
    assert rates[times * 30_000] == pytest.approx(0.02)
    model = torch.nn.Linear(8, 8)
    optimizer = build_optimizer(model, protocol, spec, 1000 * times)
    for _ in range(1000 * times):
        model.weight.grad, model.bias.grad = torch.ones(8, 8), torch.ones(8)
        optimizer.step()
    last = (int(0.75 * 1000 * times) - 1) // 100 * 100
    assert [record.step for record in optimizer.history][-1] == last


def test_pruning_alone_warms_up_for_3500_steps():
    rates = learning_rates(RunSpec("pruning", "erk", 0.1, 0), 33_501)
    assert rates[0] == pytest.approx(0.1 / 3500)
    assert rates[1749] == pytest.approx(0.05)
    assert rates[3499] == rates[3500] == rates[33_499] == pytest.approx(0.1)
    assert rates[33_500] == pytest.approx(0.02)


def test_one_cycle_peaks_at_the_given_rate():
    protocol = load_preset("cpu")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0, momentum=0.9)
    scheduler = build_scheduler(optimizer, protocol, RunSpec("dense", None, None, 0), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(protocol.optimizer.lr)
    warmup = 100 * protocol.schedule.warmup_fraction
    assert rates.index(max(rates)) == pytest.approx(warmup, abs=1)
    assert rates[-1] < 1e-4
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_weight_decay_leaves_parameters_of_one_dimension_out():
    protocol = load_preset("paper")
    spec = RunSpec("rigl", "erk", 0.1, 0)
    model = build_model(protocol, spec)
    optimizer = build_optimizer(model, protocol, spec, 88_000)
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (5e-4 if parameter.dim() > 1 else 0.0)
            seen.append(parameter)
    assert {id(p) for p in seen} == {id(p) for p in model.parameters()}
    assert len(seen) == len(list(model.parameters()))


@pytest.mark.parametrize(("preset", "delta_t"), [("paper", 100), ("cpu", None)])
def test_masks_move_every_delta_t_steps_until_three_quarters(preset, delta_t):
    protocol = load_preset(preset)
    delta_t = delta_t or protocol.sparsity.delta_t
    model = torch.nn.Linear(40, 40)
    optimizer = build_optimizer(model, protocol, RunSpec("rigl", "erk", 0.1, 0), 1000)
    for _ in range(1000):
        model.weight.grad = torch.randn(40, 40)
        model.bias.grad = torch.randn(40)
        optimizer.step()
    assert [record.step for record in optimizer.history] == list(range(delta_t, 750, delta_t))
    expected = [0.15 * (1 + math.cos(math.pi * t / 750)) for t in range(delta_t, 750, delta_t)]
    assert [record.fraction for record in optimizer.history] == pytest.approx(expected)


def test_sparse_methods_start_from_the_same_weights():
    protocol = load_preset("smoke")
    models = []
    for method in ("dense", "rigl"):
        torch.manual_seed(3)
        models.append(build_model(protocol, RunSpec(method, "erk", 0.1, 3)))
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second)


def test_dense_runs_once_a_seed_and_small_dense_once_a_density():
    choices = Choices(
        methods=("dense", "small-dense", "rigl"),
        inits=("erk", "uniform"),
        densities=(0.1, 0.2),
        seeds=(0, 1),
    )
    labels = [spec.label for spec in expand(choices)]
    assert len(labels) == len(set(labels)) == 2 * (1 + 2 + 2 * 2)
    assert labels[:3] == ["dense-seed0", "small-dense-0.1-seed0", "rigl-erk-0.1-seed0"]
    assert [label for label in labels if label.startswith("dense")] == [
        "dense-seed0",
        "dense-seed1",
    ]


def test_key_changes_with_every_setting_and_with_the_data_but_not_with_wording():
    protocol = load_preset("cpu")
    spec = RunSpec("rigl", "erk", 0.1, 0)
    keys = {spec.key(protocol, "a")}
    changes = {
        "model": {"dropout": 0.5},
        "training": {"epochs": 11},
        "augmentation": {"flip": False},
        "optimizer": {"lr": 0.2},
        "schedule": {"warmup_fraction": 0.4},
        "sparsity": {"alpha": 0.4},
    }
    for section, change in changes.items():
        other = getattr(protocol, section).model_copy(update=change)
        keys.add(spec.key(protocol.model_copy(update={section: other}), "a"))
    keys.add(spec.key(protocol, "b"))
    keys.add(dataclasses.replace(spec, seed=1).key(protocol, "a"))
    assert len(keys) == 1 + len(changes) + 2
    reworded = protocol.model_copy(update={"summary": "other words"})
    assert spec.key(reworded, "a") == spec.key(protocol, "a")


@pytest.mark.parametrize(
    "path", sorted(COMMITTED.rglob("results.jsonl")), ids=lambda p: p.parent.name
)
def test_committed_results_keep_the_names_by_which_their_runs_are_skipped(path):
    for record in map(json.loads, path.read_text().splitlines()):
        words = {name: record["protocol"][name] for name in ("name", "summary", "reduced")}
        choices = {"methods": [], "inits": [], "densities": [], "seeds": []}
        protocol = build(Protocol, record["protocol"]["settings"] | words | {"choices": choices})
        settings = tuple(sorted(record["run"].get("settings", {}).items()))
        spec = RunSpec(**{**record["run"], "settings": settings})
        assert spec.key(protocol, record["data"]) == record["key"]
        assert spec.as_dict() == record["run"]


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("cpu", "static-erk-0.1-seed0-58efbfc98fcd"),
        ("tenth", "static-erk-0.1-seed0-0591798ca893"),
        ("contour", "static-erk-0.1-seed0-974c94ec1069"),
    ],
)
def test_presets_still_give_the_names_under_which_their_results_are_committed(preset, name):
    spec = RunSpec("static", "erk", 0.1, 0)
    assert spec.key(load_preset(preset), data="c6623c884348") == name


def test_overrides_change_the_key_and_the_label_and_nothing_else_is_named_by_them():
    protocol = load_preset("cpu")
    spec = RunSpec("rigl", "erk", 0.1, 0)
    changed = [
        dataclasses.replace(spec, alpha=0.5),
        dataclasses.replace(spec, delta_t=50),
        dataclasses.replace(spec, lr=0.05),
    ]
    assert [other.variant for other in changed] == [
        "rigl-erk-0.1-alpha0.5",
        "rigl-erk-0.1-dt50",
        "rigl-erk-0.1-lr0.05",
    ]
    assert len({other.key(protocol, "a") for other in [spec, *changed]}) == 4
    own = dataclasses.replace(spec, alpha=0.3, delta_t=protocol.sparsity.delta_t)
    assert own.without_defaults(protocol) == spec
    assert changed[1].without_defaults(protocol) == changed[1]


def test_study_is_every_combination_of_what_it_lists():
    study = build(
        Study,
        {
            "name": "rates",
            "methods": ["rigl"],
            "inits": ["erk", "uniform"],
            "densities": [0.1],
            "seeds": [0],
            "lrs": [0.1, 0.05],
            "masks": [{"alpha": 0.3, "delta_t": 100}, {"alpha": 0.4, "delta_t": 200}],
        },
    )
    runs = expand(study)
    assert len(runs) == len(set(runs)) == 2 * 2 * 2
    settings = [{"initial": 0.5}, {"initial": 0.8}]
    granet = study.model_copy(update={"methods": ("granet",), "masks": (), "lrs": ()})
    study_of_settings = build(Study, granet.model_dump(mode="json") | {"settings": settings})
    assert [dict(run.settings)["initial"] for run in expand(study_of_settings)] == [0.5, 0.8] * 2
    assert {(run.alpha, run.delta_t) for run in runs} == {(0.3, 100), (0.4, 200)}
    assert {(run.init, run.lr) for run in runs} == {
        (init, lr) for init in ("erk", "uniform") for lr in (0.1, 0.05)
    }


def test_run_on_the_masks_of_another_names_it():
    assert RunSpec("lottery", "erk", 0.1, 2).source == RunSpec("pruning", "erk", 0.1, 2)
    assert RunSpec("rigl-reinit", "erk", 0.1, 2).source == RunSpec("rigl-sm", "erk", 0.1, 2)
    assert RunSpec("rigl", "erk", 0.1, 2).source is None


def test_settings_that_came_later_are_in_the_key_only_where_they_are_set():
    protocol = load_preset("cpu")
    spec = RunSpec("rigl", "erk", 0.1, 0)
    assert "kind" not in protocol.settings()["model"]
    assert "label_smoothing" not in protocol.settings()["training"]
    smooth = protocol.training.model_copy(update={"label_smoothing": 0.1})
    other = protocol.model_copy(update={"training": smooth})
    assert other.settings()["training"]["label_smoothing"] == 0.1
    assert spec.key(other, "a") != spec.key(protocol, "a")


def test_change_on_the_command_line_changes_the_key_the_name_and_the_label():
    spec = RunSpec("rigl", "erk", 0.1, 0)
    first, second = load_protocols("paper", ["training.epochs=5"])
    assert first.training.epochs == second.training.epochs == 5
    assert first.name == "paper with training.epochs=5"
    assert first.reduced
    assert first.label == "REDUCED protocol 'paper with training.epochs=5'"
    assert spec.key(first, "a") != spec.key(load_preset("paper"), "a")


def test_order_of_the_changes_is_not_in_the_name():
    changes = ["training.epochs=5", "training.batch_size=64"]
    name = "cpu with training.batch_size=64, training.epochs=5"
    for given in (changes, changes[::-1], ["training.epochs=7", *changes]):
        protocol = load_preset("cpu", given)
        assert protocol.name == name
        assert protocol.training.epochs == 5
        assert protocol.summary.endswith(name.replace("cpu with", "; changed:"))


@pytest.mark.parametrize("change", ["training.epochs=10", "optimizer.lr=1e-1", "model.kind=wrn"])
def test_change_to_the_value_that_the_preset_has_is_no_change(change):
    plain = load_preset("paper" if change.startswith("optimizer") else "cpu")
    protocol = load_preset(plain.name, [change])
    assert protocol == plain
    other = load_preset(plain.name, [change, "training.batch_size=64"])
    assert other.name == f"{plain.name} with training.batch_size=64"


def test_protocol_is_changed_alone_where_its_preset_has_another_kind_of_network():
    changes = ("model.depth=22", "model.width=2", "training.epochs=1", "sparsity.delta_t=20")
    protocol = load_preset("smoke", changes)
    assert protocol.model.title == "WRN-22-2"
    assert (protocol.training.epochs, protocol.sparsity.delta_t) == (1, 20)
    with pytest.raises(ProtocolError, match=r"smoke-resnet.toml by --set: .*ResNet.* got 22"):
        load_protocols("smoke", changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epochs", "SETTING=VALUE"),
        ("training.epoch=5", "unknown setting 'training.epoch'; did you mean 'epochs'"),
        ("training.epochs=many", "training.epochs should be a valid integer, got 'many'"),
        ("training.epochs=true", "training.epochs should be a valid integer, got True"),
        ("training.bf16=1", "training.bf16 should be a valid boolean, got 1"),
        ("optimizer.lr=fast", "optimizer.lr should be a valid number, got 'fast'"),
        ("choices.seeds=['a']", "choices.seeds should be a valid integer, got 'a'"),
        ("training.validation_fraction=0", "validation_fraction should be greater than 0, got 0"),
        ("model.depth=11", "model: depth of a WRN is 10, 16, 22, ..., got 11"),
        ("optimizer.lr=nan", "optimizer.lr should be a finite number, got nan"),
        ("optimizer.momentum=0", "optimizer: nesterov = true needs a momentum above 0"),
        ("sparsity.t_end_fraction=5", "t_end_fraction should be less than or equal to 1, got 5"),
        ("choices.densities=[2.0]", "choices.densities should be .* equal to 1, got 2.0"),
        ("choices.search.seeds=[]", r"choices.search.seeds .* at least 1 item .*got \[\]"),
        ("choices.search.delta_t=[10, 5, 1]", "choices.search: .* a smallest and a largest"),
        ("dataset.size=3", "'dataset' is a value"),
        ("choices.studies.seeds=[3]", "'seeds' must be one of densities, longer, "),
        ("choices.studies.longer.seed=[3]", "unknown setting 'choices.studies.seed'; did you mean"),
        ("choices.studies.longer=3", "unknown setting 'choices.studies.longer'"),
        (
            "choices.studies.longer.settings=[{beta=1}]",
            "'beta' is not a setting of 'rigl-3x'.*grow",
        ),
        ("choices.studies.longer.settings=[{regrow=1}]", "settings {'regrow': 1} of 'rigl-3x': "),
        ("choices.methods=['rigle']", "'rigle' is not a method; did you mean 'rigl'.*granet"),
        ("choices.inits=['erkk']", "'erkk' is not an init; did you mean 'erk'.*uniform"),
        ("model.kind=vgg", "model.kind should be 'wrn' or 'resnet', got 'vgg'"),
    ],
)
def test_changes_that_make_no_sense_are_named(text, message):
    with pytest.raises(ProtocolError, match=message):
        load_preset("cpu", [text])


def test_study_is_changed_by_its_name_and_the_others_stay():
    plain = load_preset("cpu").choices.studies
    changes = [
        "choices.studies.longer.seeds=[7]",
        "choices.studies.learning-rate.lrs=[0.3]",
    ]
    studies = {study.name: study for study in load_preset("cpu", changes).choices.studies}
    assert studies["longer"].seeds == (7,)
    assert studies["learning-rate"].lrs == (0.3,)
    for before in plain:
        changed = {"longer": "seeds", "learning-rate": "lrs"}.get(before.name)
        after = studies[before.name]
        for name in type(before).model_fields:
            assert (getattr(before, name) == getattr(after, name)) == (name != changed)


def test_depths_of_a_resnet_are_those_that_exist():
    with pytest.raises(ProtocolError, match="a ResNet is one of 14, 26, 50, 101, got 22"):
        load_preset("resnet-50", ["model.depth=22"])


def test_change_of_the_choices_changes_no_result():
    protocol = load_preset("cpu", ["choices.seeds=[7]"])
    spec = RunSpec("rigl", "erk", 0.1, 0)
    assert protocol.choices.seeds == (7,)
    assert protocol.label == load_preset("cpu").label
    assert spec.key(protocol, "a") == spec.key(load_preset("cpu"), "a")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 3", "epoch = 3", "unknown setting 'training.epoch'; did you mean 'epochs'"),
        ("epochs = 3\n", "", "setting 'training.epochs' is missing"),
        ("epochs = 3", 'epochs = "3"', "training.epochs should be a valid integer, got '3'"),
        ('kind = "one-cycle"', 'kind = "linear"', "schedule.kind should be .*got 'linear'"),
        ('"digits"', '"mnist"', "dataset should be 'cifar10', 'cifar100' or 'digits', got 'mnist'"),
        ("warmup_fraction = 0.3", "", "schedule: a 'one-cycle' schedule needs warmup_fraction"),
        ("[model]", "[model", "tiny.toml"),
    ],
)
def test_mistakes_in_a_preset_file_are_named(tiny_preset, old, new, message):
    text = tiny_preset.read_text()
    assert old in text
    tiny_preset.write_text(text.replace(old, new))
    with pytest.raises(ProtocolError, match=message):
        load_preset(str(tiny_preset))


def test_preset_file_in_another_encoding_is_refused(tiny_preset):
    tiny_preset.write_bytes('summary = "für einen Test"'.encode("latin-1"))
    with pytest.raises(ProtocolError, match=r"tiny.toml: .*; a TOML file has to be UTF-8"):
        load_preset(str(tiny_preset))
