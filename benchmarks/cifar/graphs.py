"""Forward and backward passes replayed as one CUDA graph, for a GPU that waits for Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from sparseopt.optimizer.gradients import GradientFlag

# torch asks for warm-up calls, so that the set-up of libraries is not captured.
WARM_UP = 3


class CapturedPasses:
    """The loss of batches of one shape, and the gradients of the parameters.

    Gradients are in the same tensors after every replay. They are dense, because hooks don't run in
    a replay. That is harmless: ``step()`` reads only the live entries.

    Args:
        model: The model, in training mode. Its passes must not run Python code that has effects,
            because a replay leaves it out.
        optimizer: The optimizer of the model.
        loss_of: A function of images and labels that returns the mean loss.
        images: A batch with the shape of all others; its values do not matter. ``labels`` likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        flag = optimizer.gradient_flag if isinstance(optimizer, SparseOptimizer) else GradientFlag()
        was_dense, flag.dense_gradients = flag.dense_gradients, True
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    optimizer.zero_grad()
                    loss_of(self._images, self._labels).backward()
            torch.cuda.current_stream().wait_stream(stream)
            optimizer.zero_grad()
            with torch.cuda.graph(self._graph):
                self._loss = loss_of(self._images, self._labels)
                self._loss.backward()
        finally:
            flag.dense_gradients = was_dense
        # Running statistics must not contain the warm-up calls.
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        self._gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set all gradients to a batch's gradients; return its loss, valid until the next call."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss
