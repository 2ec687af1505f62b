"""How many weights a one-shot mask keeps, and the choice of the highest scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseopt.distributions import Init, live_counts
from sparseopt.masks.topk import largest
from sparseopt.utils.validation import check_density

__all__ = ["Budget", "make_budget"]


@dataclass(frozen=True)
class Budget:
    """Live counts: for all layers together, or for each layer.

    Attributes:
        shapes: the weight's shape of each layer, by name, in the model's order.
        total: live weights of all layers together.
        by_layer: live weights of each layer; ``None`` if scores are compared across layers.
    """

    shapes: Mapping[str, torch.Size]
    total: int
    by_layer: Mapping[str, int] | None = None

    def keep_highest(
        self, scores: Mapping[str, Tensor], *, among: Mapping[str, Tensor], progress: float = 1.0
    ) -> dict[str, Tensor]:
        r"""Return masks of the highest scores; every layer keeps one weight or more.

        Ties go to the earlier layer, and within a layer to the lower logical index.

        Args:
            scores: finite scores of the weights' shapes, by layer.
            among: bool masks of the weights' shapes: the weights that may be kept.
            progress: the progress towards the final density, in (0, 1]. For a final density
                :math:`d`, the masks have the density :math:`d^\mathrm{progress}`.

        Returns:
            Bool masks of the weights' shapes, by layer, each on the device of its scores.
        """
        if self.by_layer is not None:
            return {
                name: self._keep({name: scores[name]}, among, live, progress)[name]
                for name, live in self.by_layer.items()
            }
        return self._keep(scores, among, self.total, progress)

    def refuse_zeros(self, scores: Mapping[str, Tensor]) -> None:
        """Raise if weights with a score of 0 would be chosen by their position alone.

        A score is the product of a weight and a derivative, so a layer of zeros has scores of 0. So
        has a layer whose outputs are multiplied by zeros.

        Args:
            scores: finite scores of all weights, by layer.

        Raises:
            ValueError: if fewer scores are not 0 than weights are to be kept.
        """
        if self.by_layer is None:
            _refuse_zeros(scores, self.total)
            return
        for name, live in self.by_layer.items():
            _refuse_zeros({name: scores[name]}, live)

    def _keep(
        self,
        scores: Mapping[str, Tensor],
        among: Mapping[str, Tensor],
        final: int,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return masks of the highest scores, compared over all layers in ``scores``.

        Of ``n`` weights, ``n * (final / n) ** progress`` stay: density falls exponentially, and at
        ``progress=1`` exactly ``final`` weights stay. The best score of each layer counts as
        infinite, so that every layer keeps a weight.
        """
        sizes = [self.shapes[name].numel() for name in scores]
        live = max(len(sizes), round(sum(sizes) * (final / sum(sizes)) ** progress))
        device = next(iter(scores.values())).device
        ranked = [
            _best_made_infinite(score.reshape(-1), among[name].reshape(-1)).to(device)
            for name, score in scores.items()
        ]
        excluded = [~among[name].reshape(-1).to(device) for name in scores]
        kept = torch.split(largest(torch.cat(ranked), live, torch.cat(excluded)), sizes)
        return {
            name: mask.view(self.shapes[name]).to(scores[name].device)
            for name, mask in zip(scores, kept, strict=True)
        }


def make_budget(
    weights: Mapping[str, Tensor],
    density: float,
    init: Init | None,
) -> Budget:
    """Return a budget of ``round(density * numel)`` live weights in all, or one by layer.

    Without ``init`` scores are compared across layers; ``init`` sets the count of each layer.

    Raises:
        TypeError: if a density is not a number or ``init`` is of no usable type.
        ValueError: if a density is outside (0, 1] or a name is not known.
    """
    shapes = {name: weight.shape for name, weight in weights.items()}
    if init is not None:
        counts = live_counts(shapes, density, init)
        return Budget(shapes, sum(counts.values()), counts)
    numel = sum(math.prod(shape) for shape in shapes.values())
    return Budget(shapes, max(len(shapes), round(check_density("density", density) * numel)))


def _best_made_infinite(scores: Tensor, among: Tensor) -> Tensor:
    """Return the scores, with the highest candidate's score infinite, so that it is kept."""
    scores = scores.masked_fill(~among, -torch.inf)
    scores[scores.argmax()] = torch.inf
    return scores


def _refuse_zeros(scores: Mapping[str, Tensor], live: int) -> None:
    """Raise if fewer than ``live`` scores are not 0, unless all weights are kept."""
    # Every layer keeps its best weight in any case.
    scored = sum(max(1, int(score.count_nonzero())) for score in scores.values())
    if not scored < live < sum(score.numel() for score in scores.values()):
        return
    of_zeros = [name for name, score in scores.items() if not score.any()]
    named = of_zeros or [name for name, score in scores.items() if not score.all()]
    raise ValueError(
        f"{live} weights are to be kept, but only {scored} of them by their scores: the others "
        "would have a score of 0, and be chosen by their position alone. "
        f"{'All' if of_zeros else 'Some'} scores are 0 in {', '.join(named)}. A score is 0 where "
        "the weight is 0, or its output is multiplied by 0 later, as in models that initialise "
        "the last layer or the scales of residual branches with zeros. Initialise these "
        "otherwise before scoring, keep the named layers dense by dense=, or choose another mask, "
        'such as mask="random".'
    )
