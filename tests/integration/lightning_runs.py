"""The runs of the tests of Lightning, without Lightning, which takes seconds to import."""

from dataclasses import dataclass

from tests.integration.frameworks import MAX_NORM


@dataclass(frozen=True)
class Run:
    """What is trained by automatic optimization.

    Attributes:
        method: The method.
        state: How the optimizer's state is kept.
        fused: Whether the inner optimizer is fused.
        accumulate: Lightning's `accumulate_grad_batches`.
        precision: Lightning's `precision`.
        max_norm: Lightning's `gradient_clip_val`.
        overflows: Batches whose loss is infinite.
    """

    method: str = "rigl"
    state: str = "auto"
    fused: bool = False
    accumulate: int = 1
    precision: str = "32-true"
    max_norm: float | None = MAX_NORM
    overflows: tuple[int, ...] = ()


AUTOMATIC = {
    "rigl": Run(max_norm=None),
    "set, accumulated": Run("set", accumulate=2),
    "pruning": Run("pruning"),
    "bf16": Run("set", precision="bf16-mixed"),
    # Batch 5 overflows in an update step: the fifth step, because the step of batch 2 is skipped.
    "fp16, fused": Run("rigl", "masked", fused=True, precision="16-mixed", overflows=(2, 5)),
}
