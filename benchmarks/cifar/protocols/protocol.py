"""The protocol that all runs of a preset share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from benchmarks.cifar.protocols.choices import Choices
from benchmarks.cifar.protocols.tables import (
    ProtocolError,
    check_count,
    check_name,
    check_positive,
    check_share,
)

DATASETS = ("cifar10", "cifar100", "digits", "folder")
DATASET_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn digits",
    "folder": "own images",
}
SCHEDULES = ("step", "one-cycle")
MODELS = ("wrn", "resnet")
RESNET_DEPTHS = (14, 26, 50, 101)
PUBLISHED_WIDTH = 64
LATER = "later"
# What may be changed without another result.
WORDING = ("name", "summary", "reduced", "choices", "also", "full_steps")


def later(default: Any) -> Any:
    """A setting that came after the first results.

    It is left out of a run's name at its default, so that those results keep their names.
    """
    return dataclasses.field(default=default, metadata={LATER: True})


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        depth: Number of layers of a WRN or ResNet.
        width: Widening factor of a WRN; channels of a ResNet's stem.
        dropout: Probability inside the blocks of a WRN.
        kind: ``"wrn"``, ``"resnet"``, or ``module:callable`` for a user's own, which ignores the
            other three.
    """

    depth: int
    width: int
    dropout: float
    kind: str = later("wrn")

    def __post_init__(self) -> None:
        module, _, name = self.kind.partition(":")
        if self.kind not in MODELS and not (module and name):
            raise ProtocolError(
                f"model.kind takes one of {', '.join(MODELS)} or module:callable, got {self.kind!r}"
            )
        if self.kind not in MODELS:
            return
        if self.kind == "wrn" and (self.depth < 10 or self.depth % 6 != 4):
            raise ProtocolError(f"model.depth of a WRN is 10, 16, 22, ..., got {self.depth}")
        if self.kind == "resnet" and self.depth not in RESNET_DEPTHS:
            depths = ", ".join(map(str, RESNET_DEPTHS))
            raise ProtocolError(f"model.depth of a ResNet is one of {depths}, got {self.depth}")
        check_count("model.width", self.width)
        check_share("model.dropout", self.dropout, zero=True)

    @property
    def title(self) -> str:
        """Such as ``WRN-22-2`` or ``ResNet-50``."""
        if self.kind == "wrn":
            return f"WRN-{self.depth}-{self.width}"
        if self.kind == "resnet":
            thin = "" if self.width == PUBLISHED_WIDTH else f" of width {self.width}"
            return f"ResNet-{self.depth}{thin}"
        return self.kind


@dataclass(frozen=True)
class TrainingConfig:
    """Lengths, sizes and number formats of the training."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    validation_fraction: float
    bf16: bool
    channels_last: bool
    label_smoothing: float = later(0.0)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            check_count(f"training.{name}", getattr(self, name))
        check_share("training.validation_fraction", self.validation_fraction)
        check_share("training.label_smoothing", self.label_smoothing, zero=True)


@dataclass(frozen=True)
class AugmentationConfig:
    """Random crops, and mirroring.

    Args:
        crop_padding: Crops of the image's own size out of the image padded by reflection.
        flip: Mirror half of the images.
        min_scale: Crops of this share of the image's area up to all of it, resized to the whole,
            in place of padded ones.
    """

    crop_padding: int
    flip: bool
    min_scale: float | None = later(None)

    def __post_init__(self) -> None:
        check_count("augmentation.crop_padding", self.crop_padding, 0)
        check_share("augmentation.min_scale", self.min_scale, one=True)
        if self.min_scale is not None and self.crop_padding:
            raise ProtocolError(
                f"augmentation.min_scale takes crop_padding = 0, got {self.crop_padding}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD. Weight decay leaves parameters of one dimension out."""

    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float

    def __post_init__(self) -> None:
        check_positive("optimizer.lr", self.lr)
        check_share("optimizer.momentum", self.momentum, zero=True)
        check_positive("optimizer.weight_decay", self.weight_decay, zero=True)
        if self.nesterov and not self.momentum:
            raise ProtocolError("optimizer.nesterov = true takes a momentum above 0, got 0")


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
        check_count("schedule.step_size", self.step_size)
        check_share("schedule.gamma", self.gamma, one=True)
        check_count("schedule.warmup_steps", self.warmup_steps, 0)
        check_count("schedule.pruning_warmup_steps", self.pruning_warmup_steps, 0)
        check_share("schedule.warmup_fraction", self.warmup_fraction, zero=True, one=True)


@dataclass(frozen=True)
class SparsityConfig:
    """When masks move, and by how much."""

    delta_t: int
    alpha: float
    t_end_fraction: float

    def __post_init__(self) -> None:
        check_count("sparsity.delta_t", self.delta_t)
        check_share("sparsity.alpha", self.alpha, one=True)
        check_share("sparsity.t_end_fraction", self.t_end_fraction, zero=True, one=True)


@dataclass(frozen=True)
class Protocol:
    """Everything that the runs of one preset share.

    Args:
        name: What results and reports call it.
        summary: In what it differs from the published one.
        reduced: Whether it does.
        dataset: One of ``DATASETS``.
        model: The network.
        training: Lengths and sizes.
        augmentation: What is done to training images.
        optimizer: SGD's settings.
        schedule: The learning rate's.
        sparsity: The masks'.
        choices: What ``--all`` runs.
        also: Preset files of further protocols that belong to the preset.
        image_size: Height and width to which own images are brought.
        full_steps: Steps of a run of the protocol that this one is short for, with the same network
            and batch size. The report then projects how long such a run takes.
    """

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
    also: tuple[str, ...] = ()
    image_size: int = later(32)
    full_steps: int | None = None

    def __post_init__(self) -> None:
        check_name("dataset", self.dataset, DATASETS)
        check_count("image_size", self.image_size)

    def describe(self) -> str:
        """One line that says what was trained and how, for every place that shows numbers."""
        training, schedule = self.training, self.schedule
        rate = (
            f"x{schedule.gamma:g} every {schedule.step_size:,} steps"
            if schedule.kind == "step"
            else "one cycle"
        )
        size = f"at 3x{self.image_size}x{self.image_size}"
        parts = [
            self.model.title,
            DATASET_TITLES[self.dataset]
            + (f" {size}" if self.dataset in ("digits", "folder") else ""),
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
        settings = _settings(self)
        for name in WORDING:
            del settings[name]
        return settings


def _settings(section: Any) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if LATER in field.metadata and value == field.default:
            continue
        found[field.name] = _settings(value) if dataclasses.is_dataclass(value) else value
    return found
