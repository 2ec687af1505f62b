"""The figure of one mask update: a real one, of RigL on a layer small enough to be drawn."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sparseopt import SparseOptimizer, UpdateRecord

INPUTS, OUTPUTS, DENSITY = 12, 8, 0.25
STEPS, DELTA_T = 1600, 100

CELL, GAP, TOP = 17, 36, 44
WIDTH = INPUTS * CELL
HEIGHT = OUTPUTS * CELL
BARS_TOP, BARS_HEIGHT = TOP + HEIGHT + 76, 64
SIZE = (3 * WIDTH + 2 * GAP, BARS_TOP + BARS_HEIGHT + 44)
TITLE = "One mask update of RigL, and how much moves as training goes on"
TEXT = (
    "Three pictures of one weight matrix, of which a quarter is live. First it trains. Then its "
    "smallest live weights are dropped. Then as many others grow, where the gradient is largest. "
    "Below, a bar for every update of the training: they become smaller, and after three quarters "
    "of the training there are none."
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
    """The figure as SVG; its colours are those of the theme."""
    update = OneUpdate()
    dropped, grown = update.before & ~update.after, update.after & ~update.before
    panels = (
        ("1. Train", "Only live weights move.", _plain),
        ("2. Drop", "The smallest live weights go.", _crossing(dropped)),
        ("3. Grow", "Others come, where the", _growing(dropped, grown)),
    )
    lines = [
        '<div class="drawing">',
        f'<svg class="mask-update" viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="img" '
        'aria-labelledby="mask-update-title mask-update-text">',
        f'<title id="mask-update-title">{TITLE}</title>',
        f'<desc id="mask-update-text">{TEXT}</desc>',
    ]
    for number, (title, caption, draw) in enumerate(panels):
        left = number * (WIDTH + GAP)
        lines += [
            f'<text class="title" x="{left}" y="20">{title}</text>',
            *_matrix(update, left, draw),
            f'<text x="{left}" y="{TOP + HEIGHT + 22}">{caption}</text>',
        ]
    left = 2 * (WIDTH + GAP)
    lines.append(f'<text x="{left}" y="{TOP + HEIGHT + 40}">gradient is largest.</text>')
    return "\n".join([*lines, *_bars(update.history), "</svg>", "</div>"])


Draw = Callable[[int, int, float], tuple[str, str]]


def _matrix(update: OneUpdate, left: int, draw: Draw) -> Iterator[str]:
    for row in range(OUTPUTS):
        for column in range(INPUTS):
            x, y = left + column * CELL, TOP + row * CELL
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
    bottom, span = BARS_TOP + BARS_HEIGHT, SIZE[0]
    yield f'<text class="title" x="0" y="{BARS_TOP - 10}">How much moves, update by update</text>'
    largest = max(record.fraction for record in history)
    for record in history:
        height = BARS_HEIGHT * record.fraction / largest
        x = span * record.step / STEPS - 6
        yield (
            f'<rect class="grown" x="{x:.1f}" y="{bottom - height:.1f}" width="12" '
            f'height="{height:.1f}" rx="2"/>'
        )
    yield f'<path class="axis" d="M0 {bottom} H{span}"/>'
    yield f'<path class="axis dashed" d="M{0.75 * span} {BARS_TOP} V{bottom + 8}"/>'
    yield f'<text x="0" y="{bottom + 24}">first step</text>'
    yield f'<text class="middle" x="{0.75 * span}" y="{bottom + 24}">three quarters</text>'
    yield f'<text class="end" x="{span}" y="{bottom + 24}">last step</text>'
    rest = 0.875 * span
    yield f'<text class="middle" x="{rest}" y="{BARS_TOP + 30}">masks rest</text>'
