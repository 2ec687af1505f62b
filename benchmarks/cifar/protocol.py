"""What a run is: the protocol that all runs of a preset share, and the choices of one run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPARSE_METHODS = (
    "static",
    "set",
    "rigl",
    "pruning",
    "snfs",
    "rigl-sg",
    "rigl-sm",
    "granet",
    "mest",
)
METHODS = ("dense", "small-dense", *SPARSE_METHODS)
INITS = ("erk", "uniform")
DATASETS = ("cifar10", "digits")
SCHEDULES = ("step", "one-cycle")
PRESET_DIR = Path(__file__).parent / "presets"
PRESETS = ("smoke", "cpu", "paper")

Section = TypeVar("Section")


class ProtocolError(ValueError):
    """A preset file that does not say what a protocol needs."""


@dataclass(frozen=True)
class ModelConfig:
    """WRN-depth-width and the dropout inside its blocks."""

    depth: int
    width: int
    dropout: float


@dataclass(frozen=True)
class TrainingConfig:
    """Lengths, sizes and number formats of the training."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    validation_fraction: float
    bf16: bool
    channels_last: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ProtocolError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class AugmentationConfig:
    """Random crops out of the image padded by reflection, and mirroring."""

    crop_padding: int
    flip: bool


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD. Weight decay leaves parameters of one dimension out."""

    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate: ``step`` (times gamma every step_size steps) or ``one-cycle``."""

    kind: str
    step_size: int | None = None
    gamma: float | None = None
    warmup_steps: int = 0
    pruning_warmup_steps: int = 0
    warmup_fraction: float | None = None

    def __post_init__(self) -> None:
        _check_name("schedule.kind", self.kind, SCHEDULES)
        needed = ("step_size", "gamma") if self.kind == "step" else ("warmup_fraction",)
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ProtocolError(f"a {self.kind!r} schedule needs {', '.join(missing)}")


@dataclass(frozen=True)
class SparsityConfig:
    """When masks move, and by how much."""

    delta_t: int
    alpha: float
    t_end_fraction: float


@dataclass(frozen=True)
class Choices:
    """What ``--all`` runs."""

    methods: tuple[str, ...]
    inits: tuple[str, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, known in (("methods", METHODS), ("inits", INITS)):
            for value in getattr(self, name):
                _check_name(f"choices.{name}", value, known)


@dataclass(frozen=True)
class Protocol:
    """Everything that the runs of one preset share."""

    name: str
    summary: str
    reduced: bool
    dataset: str
    model: ModelConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    sparsity: SparsityConfig
    choices: Choices

    def __post_init__(self) -> None:
        _check_name("dataset", self.dataset, DATASETS)

    def describe(self) -> str:
        """One line that says what was trained and how, for every place that shows numbers."""
        training, schedule = self.training, self.schedule
        rate = (
            f"x{schedule.gamma:g} every {schedule.step_size:,} steps"
            if schedule.kind == "step"
            else "one cycle"
        )
        parts = [
            f"WRN-{self.model.depth}-{self.model.width}",
            {"cifar10": "CIFAR-10", "digits": "scikit-learn digits at 3x32x32"}[self.dataset],
            f"{training.epochs} epochs",
            f"batch {training.batch_size}",
            f"SGD lr {self.optimizer.lr:g} ({rate})",
            f"delta_t {self.sparsity.delta_t}",
            f"alpha {self.sparsity.alpha:g}",
        ]
        if training.bf16:
            parts.append("bf16 autocast")
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """How every report, plot and progress header names the protocol."""
        if not self.reduced:
            return f"{self.name} protocol"
        return f"REDUCED protocol '{self.name}'"

    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers: without the wording and without the list of choices."""
        settings = dataclasses.asdict(self)
        for name in ("name", "summary", "reduced", "choices"):
            del settings[name]
        return settings


@dataclass(frozen=True)
class RunSpec:
    """One run of a protocol: which method, at which density, from which seed.

    ``dense`` has neither ``init`` nor ``density``; ``small-dense`` has no ``init``.
    """

    method: str
    init: str | None
    density: float | None
    seed: int

    @property
    def variant(self) -> str:
        """The run without its seed, such as ``rigl-erk-0.1``."""
        parts = [self.method, self.init, None if self.density is None else f"{self.density:g}"]
        return "-".join(part for part in parts if part is not None)

    @property
    def label(self) -> str:
        """The run's name, such as ``rigl-erk-0.1-seed0``."""
        return f"{self.variant}-seed{self.seed}"

    def key(self, protocol: Protocol, data: str) -> str:
        """A name that changes with every setting and with the data, so that no result is mistaken.

        Args:
            protocol: What all runs share.
            data: The fingerprint of the data set.
        """
        settings = {"protocol": protocol.settings(), "run": dataclasses.asdict(self), "data": data}
        text = json.dumps(settings, sort_keys=True)
        return f"{self.label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def expand(choices: Choices) -> list[RunSpec]:
    """Every run of the choices, seed by seed, so that comparisons are complete early."""
    runs: dict[RunSpec, None] = {}
    for seed in choices.seeds:
        for density in choices.densities:
            for init in choices.inits:
                for method in choices.methods:
                    runs[_spec(method, init, density, seed)] = None
    return list(runs)


def _spec(method: str, init: str, density: float, seed: int) -> RunSpec:
    if method == "dense":
        return RunSpec(method, None, None, seed)
    if method == "small-dense":
        return RunSpec(method, None, density, seed)
    return RunSpec(method, init, density, seed)


def load_preset(name: str) -> Protocol:
    """The shipped protocol called ``name``, or the one in a ``.toml`` file of the user's.

    Raises:
        ProtocolError: If the file lacks a setting or has one that does not exist.
        FileNotFoundError: If there is no such file.
    """
    path = PRESET_DIR / f"{name}.toml" if name in PRESETS else Path(name)
    table = read_toml(path)
    try:
        return _build(Protocol, {"name": path.stem} | table)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ProtocolError: If it is not TOML.
    """
    with path.open("rb") as file:
        try:
            table: dict[str, Any] = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ProtocolError(f"{path}: {error}") from None
    return table


def _check_name(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ProtocolError(f"{setting} takes one of {', '.join(known)}, got {value!r}")


def _build(section: type[Section], table: dict[str, Any]) -> Section:
    """An instance of a dataclass from a TOML table, with every name and type checked."""
    if not isinstance(table, dict):
        raise ProtocolError(f"{section.__name__} must be a table, got {table!r}")
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    unknown = sorted(table.keys() - fields.keys())
    if unknown:
        raise ProtocolError(f"unknown setting {unknown[0]!r}; it may be one of {sorted(fields)}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(name, table[name], hints[name])
        elif field.default is dataclasses.MISSING:
            raise ProtocolError(f"setting {name!r} of {section.__name__} is missing")
    return section(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(_convert(name, item, typing.get_args(hint)[0]) for item in value)
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in accepted and type(value) is int:
        return float(value)
    if type(value) not in accepted:
        raise ProtocolError(f"{name} must be {hint}, got {value!r}")
    return value
