"""The protocol that all runs of a preset share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar.choices import Choices
from benchmarks.cifar.tables import ProtocolError, build, check_name, read_toml

DATASETS = ("cifar10", "digits")
SCHEDULES = ("step", "one-cycle")
PRESET_DIR = Path(__file__).parent / "presets"
PRESETS = ("smoke", "cpu", "paper")


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
        check_name("schedule.kind", self.kind, SCHEDULES)
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
        check_name("dataset", self.dataset, DATASETS)

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


def load_preset(name: str) -> Protocol:
    """The shipped protocol called ``name``, or the one in a ``.toml`` file of the user's.

    Raises:
        ProtocolError: If the file lacks a setting or has one that does not exist.
        FileNotFoundError: If there is no such file.
    """
    path = PRESET_DIR / f"{name}.toml" if name in PRESETS else Path(name)
    table = read_toml(path)
    try:
        return build(Protocol, {"name": path.stem} | table)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from None
