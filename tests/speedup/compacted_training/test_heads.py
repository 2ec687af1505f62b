"""Training without dropped heads and neurons: the same as with them, in every transformer."""

import pytest
import torch

from sparseopt import CompactedTraining, SparseOptimizer
from tests.speedup.compacted_training.sameness import assert_same_training
from tests.support.attention_nets import TRANSFORMERS
from tests.support.catalogue import build

STEPS = 18


def wrapped(case, name="AdamW"):
    # In double precision, so that no near tie is settled by rounding.
    model = case.build(torch.float64)
    args, kwargs = case.inputs(torch.float64)
    optimizer = SparseOptimizer(
        build(name, model.parameters()),
        model,
        method="rigl-struct",
        example_inputs=kwargs or args,
        density=0.5,
        init={},
        total_steps=40,
        delta_t=4,
        alpha=0.6,
        seed=3,
    )
    return model, optimizer


def train(case, model, optimizer):
    sizes = []
    for step in range(STEPS):
        optimizer.zero_grad()
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        output = case.run(model, torch.float64)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(step))
        (output - target).square().mean().backward()
        optimizer.step()
    return sizes


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_compacted_training_equals_training_of_the_full_model(name):
    if name in {"gpt2", "llama", "bert"}:
        pytest.importorskip("transformers")
    case = TRANSFORMERS[name]
    whole = wrapped(case)
    (size, *_) = train(case, *whole)
    model, optimizer = wrapped(case)
    classes = [type(module) for module in model.modules()]
    args, kwargs = case.inputs(torch.float64)
    with CompactedTraining(model, optimizer, example_inputs=(args, kwargs)):
        sizes = train(case, model, optimizer)
    assert [now == size for now in sizes] == [step % 4 == 3 for step in range(STEPS)]
    assert [type(module) for module in model.modules()] == classes
    assert max(record.new for record in optimizer.history) > 0
    assert_same_training(model, optimizer, *whole)


def test_numbers_of_heads_are_put_back():
    case = TRANSFORMERS["own, view"]
    model, optimizer = wrapped(case)
    args, _ = case.inputs(torch.float64)
    with CompactedTraining(model, optimizer, example_inputs=args):
        assert model.heads == 2
    assert model.heads == 4
