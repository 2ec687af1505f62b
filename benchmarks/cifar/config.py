"""The protocol that all runs of a preset share, its file, and changes on the command line."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from benchmarks.cifar.datasets import CLASSES, DATASET_TITLES
from benchmarks.cifar.grid import Choices, Count, Share
from benchmarks.cifar.settings import (
    ProtocolError,
    Section,
    build,
    later,
    meant,
    parse_value,
    read_toml,
)

#: Bottlenecks in each group of a ResNet, by its depth.
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PUBLISHED_WIDTH = 64
PRESET_DIR = Path(__file__).with_name("presets")
PRESETS = ("smoke", "cpu", "tenth", "full", "paper", "resnet-50")
# Settings that do not change a result.
WORDING = frozenset({"name", "summary", "reduced", "choices", "also", "full_steps"})

NonNegative = Annotated[int, Field(ge=0)]
ShareOrZero = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class ModelConfig(Section):
    """The network.

    ``width`` is the widening factor of a WRN, or the channels of a ResNet's stem.
    """

    depth: int
    width: Count
    dropout: BelowOne
    kind: Literal["wrn", "resnet"] = later("wrn")

    @model_validator(mode="after")
    def _has_a_possible_depth(self) -> ModelConfig:
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
    """Lengths, sizes and number formats of the training.

    ``speed_up`` trains sparse methods on live weights only, wherever that is faster.
    """

    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    bf16: bool
    channels_last: bool
    label_smoothing: BelowOne = later(0.0)
    speed_up: bool = later(False)


class AugmentationConfig(Section):
    """Random crops, and mirroring.

    Args:
        crop_padding: Pad the image by reflection, and crop the image's own size out of it.
        flip: Mirror half of the images.
        min_scale: Instead of padding, crop a share of the image's area between this and 1, and
            resize the crop to the image's size.
    """

    crop_padding: NonNegative
    flip: bool
    min_scale: Share | None = later(None)

    @model_validator(mode="after")
    def _crops_in_one_way(self) -> AugmentationConfig:
        if self.min_scale is not None and self.crop_padding:
            raise ValueError(f"min_scale needs crop_padding = 0, got {self.crop_padding}")
        return self


class OptimizerConfig(Section):
    """SGD. Parameters of one dimension have no weight decay."""

    lr: Annotated[float, Field(gt=0.0)]
    momentum: BelowOne
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0.0)]

    @model_validator(mode="after")
    def _has_momentum_for_nesterov(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs a momentum above 0, got 0")
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
        name: The protocol's name in results and reports.
        summary: How the protocol differs from the published protocol.
        reduced: Whether it differs.
        choices: The runs of ``--all``.
        also: Preset files of further protocols that belong to the preset.
        full_steps: Steps of a full run, if this protocol is a short version of a longer protocol
            with the same network and batch size. The report then projects the time of a full run.
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
        formats = {"bf16 autocast": training.bf16, "speed_up": training.speed_up}
        return ", ".join([*parts, *(name for name, is_on in formats.items() if is_on)])

    @property
    def label(self) -> str:
        """The protocol's name in reports, plots and progress headers."""
        return f"REDUCED protocol '{self.name}'" if self.reduced else f"{self.name} protocol"

    @property
    def classes(self) -> int:
        """Number of classes of the data set."""
        return CLASSES[self.dataset]

    def settings(self) -> dict[str, Any]:
        """The settings that decide a run's numbers, without wording and choices."""
        return self.model_dump(exclude=set(WORDING))


def load_preset(name: str, changes: Sequence[str] = ()) -> Protocol:
    """The protocol in the shipped file called ``name``, or in a ``.toml`` file of the user's.

    Protocols that the file names in ``also`` are not loaded. Changes are settings by their paths,
    such as ``training.epochs=5``. A study is found by its name, as in
    ``choices.studies.longer.seeds=[2]``.
    """
    return _load(_find(name, []), changes)


def load_protocols(name: str, changes: Sequence[str] = ()) -> tuple[Protocol, ...]:
    """All protocols of a preset: the file's own, and those that it names in ``also``."""
    path = _find(name, [])
    first = _load(path, changes)
    # A user's file may name other files in the same folder.
    others = [_find(other, [path.parent]) for other in first.also]
    return (first, *(_load(other, changes) for other in others))


def _find(name: str, folders: Sequence[Path]) -> Path:
    places = [folder / f"{name}.toml" for folder in (*folders, PRESET_DIR)]
    for path in (*places, Path(name)):
        if path.is_file():
            return path
    raise ProtocolError(
        f"--preset {name}: there is no such file; {meant(name, list(PRESETS))}, "
        "or a .toml file of the same form"
    )


def _load(path: Path, changes: Sequence[str]) -> Protocol:
    table = {"name": path.stem} | read_toml(path)
    try:
        preset = build(Protocol, table)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from None
    try:
        return _changed(preset, table, changes)
    except ProtocolError as error:
        raise ProtocolError(f"{path} by --set: {error}") from None


def _changed(preset: Protocol, table: dict[str, Any], changes: Sequence[str]) -> Protocol:
    """The preset in ``table`` with changes; its name says which settings differ from the preset."""
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not (equals and name):
            raise ProtocolError(
                f"--set takes SETTING=VALUE, as in training.epochs=5, got {change!r}"
            )
        values[name] = parse_value(text)
        _assign(table, name.split("."), values[name])
    changed = build(Protocol, table)
    # Sorted, so that the name does not depend on the order of the changes.
    words = [
        f"{name}={value}"
        for name, value in sorted(values.items())
        if name.split(".")[0] not in WORDING and _setting(changed, name) != _setting(preset, name)
    ]
    if not words:
        return changed
    # Results of a changed protocol must not be confused with results of the preset.
    told = ", ".join(words)
    name, summary = f"{changed.name} with {told}", f"{changed.summary}; changed: {told}"
    return changed.model_copy(update={"name": name, "summary": summary, "reduced": True})


def _setting(protocol: Protocol, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), protocol)


def _assign(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    name, *rest = path
    if not rest:
        table[name] = value
        return
    inner = table.setdefault(name, {})
    if isinstance(inner, list) and all(isinstance(item, dict) for item in inner):
        # Several tables in the same place, such as the studies, are found by their names.
        by_name = {str(item.get("name")): item for item in inner}
        if rest[0] not in by_name:
            raise ProtocolError(f"{rest[0]!r} must be one of {', '.join(by_name)}")
        inner, rest = by_name[rest[0]], rest[1:] or rest
    if not isinstance(inner, dict):
        raise ProtocolError(f"{name!r} is a value and has no settings in it")
    _assign(inner, rest, value)
