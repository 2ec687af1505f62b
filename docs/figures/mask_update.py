"""The figure of one mask update: a real one, of RigL on a layer small enough to be drawn."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sparseopt import SparseOptimizer, UpdateRecord

INPUTS, OUTPUTS, DENSITY = 12, 8, 0.25
STEPS, DELTA_T = 1600, 100

CELL = 17
BARS_WIDTH, BARS_HEIGHT = 680, 64
BARS = (
    "A bar for every update of the training: they become smaller, and after three quarters of the "
    "training there are none."
)


class OneUpdate:
    """A short training, of which the first update is kept.

    Attributes:
        weight: Magnitudes before the update, the largest being 1.
        before: Mask before it.
        after: Mask after it.
        history: All updates of the training.
    """

    def __init__(self) -> None:
        torch.manual_seed(3)
        layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
        task = torch.randn(OUTPUTS, INPUTS) * torch.rand(1, INPUTS).square() * 3
        optimizer = SparseOptimizer(
            torch.optim.SGD(layer.parameters(), lr=0.02),
            layer,
            method="rigl",
            density=DENSITY,
            init={},
            total_steps=STEPS,
            delta_t=DELTA_T,
            seed=0,
        )
        for step in range(1, STEPS + 1):
            inputs = torch.randn(32, INPUTS)
            optimizer.zero_grad()
            nn.functional.mse_loss(layer(inputs), inputs @ task.T).backward()
            if step == DELTA_T:
                self.weight = layer.weight.detach().abs() / layer.weight.detach().abs().max()
                self.before = optimizer.masks["weight"]
            optimizer.step()
            if step == DELTA_T:
                self.after = optimizer.masks["weight"]
        self.history: list[UpdateRecord] = list(optimizer.history)


def drawing() -> str:
    """The figure as HTML, in the colours of the theme; a narrow page stacks its parts."""
    update = OneUpdate()
    dropped, grown = update.before & ~update.after, update.after & ~update.before
    panels = (
        ("1. Train", "Only live weights move.", _plain),
        ("2. Drop", "The smallest live weights go.", _crossing(dropped)),
        ("3. Grow", "Others come, where the gradient is largest.", _growing(dropped, grown)),
    )
    lines = ['<div class="mask-update">']
    for title, caption, draw in panels:
        lines += [
            f"<div><strong>{title}</strong>",
            f'<svg viewBox="0 0 {INPUTS * CELL} {OUTPUTS * CELL}" role="img" '
            f'aria-label="Weights of a layer. {caption}">',
            *_matrix(update, draw),
            f"</svg><p>{caption}</p></div>",
        ]
    lines += ['<div class="bars"><strong>How much moves, update by update</strong>']
    lines += _bars(update.history)
    lines.append("<p><span>first step</span><span>¾</span><span>last step</span></p>")
    return "\n".join([*lines, "</div></div>"])


Draw = Callable[[int, int, float], tuple[str, str]]


def _matrix(update: OneUpdate, draw: Draw) -> Iterator[str]:
    for row in range(OUTPUTS):
        for column in range(INPUTS):
            x, y = column * CELL, row * CELL
            live = bool(update.before[row, column])
            size = float(update.weight[row, column]) if live else 0.0
            kind, mark = draw(row, column, size)
            shade = f' style="fill-opacity:{0.25 + 0.75 * size:.2f}"' if kind == "live" else ""
            yield (
                f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" '
                f'height="{CELL - 2}" rx="2"{shade}/>'
            )
            if mark:
                yield f'<path class="mark" d="M{x + 5} {y + 5} l7 7 m0 -7 l-7 7"/>'


def _plain(row: int, column: int, size: float) -> tuple[str, str]:
    return ("live" if size else "empty"), ""


def _crossing(dropped: Tensor) -> Draw:
    def draw(row: int, column: int, size: float) -> tuple[str, str]:
        if dropped[row, column]:
            return "dropped", "cross"
        return _plain(row, column, size)

    return draw


def _growing(dropped: Tensor, grown: Tensor) -> Draw:
    def draw(row: int, column: int, size: float) -> tuple[str, str]:
        if grown[row, column]:
            return "grown", ""
        return _plain(row, column, 0.0 if dropped[row, column] else size)

    return draw


def _bars(history: list[UpdateRecord]) -> Iterator[str]:
    yield (
        f'<svg viewBox="0 0 {BARS_WIDTH} {BARS_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{BARS}">'
    )
    largest = max(record.fraction for record in history)
    for record in history:
        height = BARS_HEIGHT * record.fraction / largest
        x = BARS_WIDTH * record.step / STEPS - 6
        yield (
            f'<rect class="grown" x="{x:.1f}" y="{BARS_HEIGHT - height:.1f}" width="12" '
            f'height="{height:.1f}"/>'
        )
    yield f'<path class="axis" d="M0 {BARS_HEIGHT} H{BARS_WIDTH}"/>'
    yield f'<path class="axis dashed" d="M{0.75 * BARS_WIDTH} 0 V{BARS_HEIGHT}"/></svg>'
