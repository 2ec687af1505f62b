"""The least that a step of live weights takes here: torch's own operators, one pass for each part.

What these steps leave out is everything that makes an optimizer of them: they look for nothing,
check nothing, move no masks, and keep their scratch. So none can be faster that gathers with these
operators, and where a target lies below, it is not the code around them that misses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.overhead.contenders import DROP_FRACTION, Contender, Sparsity
from benchmarks.overhead.inner import make_inner
from benchmarks.overhead.timing import Sample, seconds

#: The parts of a step, in their order.
PARTS = ("gather gradients", "gather weights", "inner step", "clear and write back")
#: The parts of choosing what drops and grows, in their order.
UPDATE_PARTS = ("check gradients", "magnitudes", "largest weights", "largest gradients")
#: Live weights of a piece: an optimizer's temporary tensors of so many stay in the cache.
PIECE = 1 << 20


@dataclass(frozen=True)
class Way:
    """How the floor is walked: which of them is the lowest depends on the machine.

    Attributes:
        piece: Live weights that the inner optimizer steps at a time, about; None for all at once.
        threads: Threads that layers are gathered and written back in.
    """

    piece: int | None
    threads: int

    @property
    def name(self) -> str:
        """In words."""
        size = "one parameter" if self.piece is None else f"pieces of {self.piece:,}"
        return f"{size}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def ways(device: torch.device, threads: int) -> list[Way]:
    """Return what is worth trying on ``device``, whose calls only queue if it is no CPU."""
    if device.type != "cpu" or threads < 2:
        return [Way(None, 1), Way(PIECE, 1)]
    return [Way(None, 1), Way(None, threads), Way(PIECE, threads)]


@dataclass(frozen=True)
class Piece:
    """Layers whose live weights are one 1-D parameter of an optimizer of their own.

    Attributes:
        weights: The dense parameters.
        positions: Where their live weights are, ascending.
        live: The 1-D parameter; its gradient is there already.
        optimizer: Steps ``live``; the first piece's also steps what is not sparse.
    """

    weights: list[nn.Parameter]
    positions: list[Tensor]
    live: nn.Parameter
    optimizer: Optimizer

    def parts_of(self, tensor: Tensor) -> Sequence[Tensor]:
        """Split one number a live weight by layer."""
        return torch.split(tensor, [positions.numel() for positions in self.positions])


class Floor(Contender):
    """Gathers live gradients and weights, steps them, clears the weights and writes live ones back.

    Args:
        model: A model that is this contender's, of contiguous weights.
        optimizer: One of the inner optimizers by name.
        sparsity: Not looked at: the masks are given.
        masks: By module name. Layers without one, or all live, are stepped as they are.
        way: How.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: str,
        sparsity: Sparsity,
        *,
        masks: dict[str, Tensor],
        way: Way,
    ) -> None:
        self._masks = masks
        self._way = way
        self._executor = ThreadPoolExecutor(way.threads)
        self._scratch: dict[int, Tensor] = {}
        #: Seconds of each part of the last step, by name.
        self.took: Sample = {}
        super().__init__(model, optimizer, sparsity)
        self._device = next(model.parameters()).device

    def prepare(self, optimizer: str) -> Optimizer:
        sparse: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in self._masks.items():
            if not mask.all():
                positions = mask.reshape(-1).nonzero().reshape(-1).to(torch.int32)
                sparse.append((attrgetter(f"{name}.weight")(self.model), positions))
        gathered = {weight for weight, _ in sparse}
        others = [weight for weight in self.model.parameters() if weight not in gathered]
        self.pieces = []
        chunks = list(_within(self._way.piece, sparse))
        counts = [sum(positions.numel() for _, positions in layers) for layers in chunks]
        # The same memory for every piece, so that it is in the cache.
        values, gradients = sparse[0][0].detach().new_zeros(2, max(counts))
        for layers, count in zip(chunks, counts, strict=True):
            weights, positions = (list(column) for column in zip(*layers, strict=True))
            live = nn.Parameter(values[:count])
            live.grad = gradients[:count]
            inner = make_inner(optimizer, [live, *others])
            self.pieces.append(Piece(weights, positions, live, inner))
            others = []
        return self.pieces[0].optimizer

    def step(self) -> None:
        self.took = dict.fromkeys(PARTS, 0.0)
        with torch.no_grad():
            for piece in self.pieces:
                self._step(piece)

    def choose(self) -> Sample:
        """Time what a mask update chooses by, made by torch: which weights drop, and which grow.

        Gradients are checked for infinities; as many live weights as RigL keeps are found, and as
        many others as it grows.
        """
        self.took = dict.fromkeys(UPDATE_PARTS, 0.0)
        with torch.no_grad():
            for piece in self.pieces:
                self._choose(piece)
        return self.took

    def masks(self) -> dict[str, Tensor]:
        return dict(self._masks)

    def _step(self, piece: Piece) -> None:
        weights = [weight.detach().view(-1) for weight in piece.weights]
        gradients = [_gradient(weight).view(-1) for weight in piece.weights]
        live = piece.parts_of(piece.live.detach())
        live_gradients = piece.parts_of(_gradient(piece.live))

        def gather(source: Sequence[Tensor], target: Sequence[Tensor]) -> Callable[[int], Any]:
            return lambda i: torch.index_select(source[i], 0, piece.positions[i], out=target[i])

        def write(index: int) -> None:
            _clear(weights[index])
            weights[index].scatter_(0, piece.positions[index], live[index])

        names = iter(PARTS)
        self._time(next(names), lambda: self._spread(piece, gather(gradients, live_gradients)))
        self._time(next(names), lambda: self._spread(piece, gather(weights, live)))
        self._time(next(names), piece.optimizer.step)
        self._time(next(names), lambda: self._spread(piece, write))

    def _choose(self, piece: Piece) -> None:
        gradients = [_gradient(weight).view(-1) for weight in piece.weights]
        weights = [weight.detach().view(-1) for weight in piece.weights]
        counts = [int(DROP_FRACTION * positions.numel()) for positions in piece.positions]
        magnitudes = [self._scratch_like(gradient) for gradient in gradients]
        kept: list[Tensor] = [torch.empty(0)] * len(weights)

        def check() -> None:
            norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
            torch.stack(norms).isfinite().all().item()

        def measure() -> None:
            for gradient, magnitude in zip(gradients, magnitudes, strict=True):
                torch.abs(gradient, out=magnitude)

        def keep(index: int) -> None:
            positions = piece.positions[index]
            live = weights[index].index_select(0, positions).abs_()
            places = live.topk(live.numel() - counts[index], sorted=False).indices
            kept[index] = positions.index_select(0, places)

        def grow(index: int) -> None:
            candidates = magnitudes[index]
            survivors = kept[index]
            candidates.scatter_(0, survivors, candidates.new_full((1,), -1).expand(len(survivors)))
            candidates.topk(counts[index], sorted=False)

        names = iter(UPDATE_PARTS)
        self._time(next(names), check)
        self._time(next(names), measure)
        self._time(next(names), lambda: self._spread(piece, keep))
        self._time(next(names), lambda: self._spread(piece, grow))

    def _scratch_like(self, tensor: Tensor) -> Tensor:
        """Return memory of the size of ``tensor``, allocated when it is first asked for."""
        key = tensor.data_ptr()
        if key not in self._scratch:
            self._scratch[key] = torch.empty_like(tensor)
        return self._scratch[key]

    def _time(self, part: str, call: Callable[[], Any]) -> None:
        self.took[part] += seconds(call, self._device)

    def _spread(self, piece: Piece, function: Callable[[int], Any]) -> None:
        """Call ``function`` with the index of every layer, in as many threads as were asked for."""

        def run(part: Sequence[int]) -> None:
            with torch.no_grad():
                for index in part:
                    function(index)

        shares = _shares([weight.numel() for weight in piece.weights], self._way.threads)
        running = [self._executor.submit(run, share) for share in shares[1:]]
        run(shares[0])
        for thread in running:
            thread.result()


def _within(
    limit: int | None, layers: Sequence[tuple[nn.Parameter, Tensor]]
) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    together: list[tuple[nn.Parameter, Tensor]] = []
    live = 0
    for weight, positions in layers:
        if limit is not None and together and live + positions.numel() > limit:
            yield together
            together, live = [], 0
        together.append((weight, positions))
        live += positions.numel()
    yield together


def _shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Return the indices of ``sizes`` in ``count`` parts, about equally heavy."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        lightest = loads.index(min(loads))
        parts[lightest].append(index)
        loads[lightest] += sizes[index]
    return parts


def _clear(tensor: Tensor) -> None:
    if tensor.device.type == "cpu":
        # Torch would start a team of threads in each of ours.
        tensor.view(torch.uint8).numpy().fill(0)
    else:
        tensor.zero_()


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad
