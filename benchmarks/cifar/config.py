"""The protocol that all runs of a preset share."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from benchmarks.cifar.grid import Choices, Count, Share
from benchmarks.cifar.settings import Section, later

DATASET_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn digits"}
#: Bottlenecks in each group of a ResNet, by its depth.
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PUBLISHED_WIDTH = 64
# What may be changed without another result.
WORDING = frozenset({"name", "summary", "reduced", "choices", "also", "full_steps"})

NonNegative = Annotated[int, Field(ge=0)]
ShareOrZero = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class ModelConfig(Section):
    """The network.

    Args:
        depth: Number of layers.
        width: Widening factor of a WRN; channels of a ResNet's stem.
        dropout: Probability inside the blocks of a WRN.
        kind: Which network.
    """

    depth: int
    width: Count
    dropout: BelowOne
    kind: Literal["wrn", "resnet"] = later("wrn")

    @model_validator(mode="after")
    def _has_a_depth_that_there_is(self) -> ModelConfig:
        if self.kind == "wrn" and (self.depth < 10 or self.depth % 6 != 4):
            raise ValueError(f"depth of a WRN is 10, 16, 22, ..., got {self.depth}")
        if self.kind == "resnet" and self.depth not in BLOCKS:
            depths = ", ".join(map(str, BLOCKS))
            raise ValueError(f"depth of a ResNet is one of {depths}, got {self.depth}")
        return self

    @property
    def title(self) -> str:
        """Such as ``WRN-22-2`` or ``ResNet-50``."""
        if self.kind == "wrn":
            return f"WRN-{self.depth}-{self.width}"
        thin = "" if self.width == PUBLISHED_WIDTH else f" of width {self.width}"
        return f"ResNet-{self.depth}{thin}"


class TrainingConfig(Section):
    """Lengths, sizes and number formats of the training."""

    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    bf16: bool
    channels_last: bool
    label_smoothing: BelowOne = later(0.0)


class AugmentationConfig(Section):
    """Random crops, and mirroring.

    Args:
        crop_padding: Crops of the image's own size out of the image padded by reflection.
        flip: Mirror half of the images.
        min_scale: Crops of this share of the image's area up to all of it, resized to the whole,
            in place of padded ones.
    """

    crop_padding: NonNegative
    flip: bool
    min_scale: Share | None = later(None)

    @model_validator(mode="after")
    def _crops_in_one_way(self) -> AugmentationConfig:
        if self.min_scale is not None and self.crop_padding:
            raise ValueError(f"min_scale takes crop_padding = 0, got {self.crop_padding}")
        return self


class OptimizerConfig(Section):
    """SGD. Weight decay leaves parameters of one dimension out."""

    lr: Annotated[float, Field(gt=0.0)]
    momentum: BelowOne
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0.0)]

    @model_validator(mode="after")
    def _has_a_momentum_to_look_ahead_by(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true takes a momentum above 0, got 0")
        return self


class ScheduleConfig(Section):
    """Learning rate: ``step`` (times gamma every step_size steps) or ``one-cycle``."""

    kind: Literal["step", "one-cycle"]
    step_size: Count | None = None
    gamma: Share | None = None
    warmup_steps: NonNegative = 0
    pruning_warmup_steps: NonNegative = 0
    warmup_fraction: ShareOrZero | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> ScheduleConfig:
        needed = ("step_size", "gamma") if self.kind == "step" else ("warmup_fraction",)
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a {self.kind!r} schedule needs {', '.join(missing)}")
        return self


class SparsityConfig(Section):
    """When masks move, and by how much."""

    delta_t: Count
    alpha: Share
    t_end_fraction: ShareOrZero


class Protocol(Section):
    """Everything that the runs of one preset share.

    Args:
        name: What results and reports call it.
        summary: In what it differs from the published one.
        reduced: Whether it does.
        dataset: Which images.
        model: The network.
        training: Lengths and sizes.
        augmentation: What is done to training images.
        optimizer: SGD's settings.
        schedule: The learning rate's.
        sparsity: The masks'.
        choices: What ``--all`` runs.
        also: Preset files of further protocols that belong to the preset.
        full_steps: Steps of a run of the protocol that this one is short for, with the same network
            and batch size. The report then projects how long such a run takes.
    """

    name: str
    summary: str
    reduced: bool
    dataset: Literal["cifar10", "cifar100", "digits"]
    model: ModelConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    sparsity: SparsityConfig
    choices: Choices
    also: tuple[str, ...] = ()
    full_steps: Count | None = None

    def describe(self) -> str:
        """One line that says what was trained and how, for every place that shows numbers."""
        training, schedule = self.training, self.schedule
        rate = "one cycle"
        if schedule.kind == "step":
            rate = f"x{schedule.gamma:g} every {schedule.step_size:,} steps"
        size = " at 3x32x32" if self.dataset == "digits" else ""
        parts = [
            self.model.title,
            DATASET_TITLES[self.dataset] + size,
            f"{training.epochs} epochs",
            f"batch {training.batch_size}",
            f"SGD lr {self.optimizer.lr:g} ({rate})",
            f"delta_t {self.sparsity.delta_t}",
            f"alpha {self.sparsity.alpha:g}",
        ]
        return ", ".join([*parts, "bf16 autocast"] if training.bf16 else parts)

    @property
    def label(self) -> str:
        """How every report, plot and progress header names the protocol."""
        return f"REDUCED protocol '{self.name}'" if self.reduced else f"{self.name} protocol"

    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers: without the wording and without the list of choices."""
        return self.model_dump(exclude=set(WORDING))

    def steps(self, images: int, length: int = 1) -> int:
        """Training steps of a run on so many images, so many times as long as the others."""
        return self.training.epochs * length * math.ceil(images / self.training.batch_size)
