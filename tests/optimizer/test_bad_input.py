"""Bad input raises an error at once, with the argument, its value, and what would be right."""

import pytest
import torch
from torch import nn

import sparseopt
from sparseopt import RigL, SparseOptimizer
from tests.support.catalogue import build
from tests.support.nets import make
from tests.support.wrapping import wrap

BAD_VALUES = [
    ("density", 0.0, ValueError),
    ("density", -0.1, ValueError),
    ("density", 1.5, ValueError),
    ("density", 90, ValueError),
    ("density", float("nan"), ValueError),
    ("density", "0.1", TypeError),
    ("alpha", -0.1, ValueError),
    ("alpha", 1.5, ValueError),
    ("alpha", float("nan"), ValueError),
    ("alpha", "0.3", TypeError),
    ("delta_t", 0, ValueError),
    ("delta_t", -100, ValueError),
    ("delta_t", 2.5, TypeError),
    ("total_steps", 0, ValueError),
    ("total_steps", -1, ValueError),
    ("total_steps", 10.5, TypeError),
    ("t_end", -1, ValueError),
    ("t_end", 7.5, TypeError),
    ("decay", "exponential", ValueError),
    ("state", "sparse", ValueError),
    ("regrow", "always", ValueError),
    ("mask", "gradient", ValueError),
    ("init", "uniforms", ValueError),
    ("method", "lottery-ticket", ValueError),
    ("method", 3, TypeError),
    ("init", 3, TypeError),
    ("mask", 3, TypeError),
    ("seed", "seven", TypeError),
]


@pytest.mark.parametrize(
    ("argument", "value", "error"), BAD_VALUES, ids=lambda v: getattr(v, "__name__", repr(v))
)
def test_argument_and_the_value_are_named_and_nothing_changes(argument, value, error):
    model, untouched = make(), make()
    with pytest.raises(error) as caught:
        wrap(model, **{argument: value})
    assert argument in str(caught.value)
    assert repr(value).strip("'") in str(caught.value)
    for mine, theirs in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine._post_accumulate_grad_hooks


@pytest.mark.parametrize(
    ("argument", "typo", "meant"),
    [
        ("method", "rigle", "rigl"),
        ("method", "RIGL ", "rigl"),
        ("method", "prunning", "pruning"),
        ("method", "statik", "static"),
        ("init", "erkk", "erk"),
        ("init", "unifrom", "uniform"),
        ("mask", "randon", "random"),
        ("mask", "magnitud", "magnitude"),
    ],
)
def test_typo_is_answered_with_what_was_meant(argument, typo, meant):
    with pytest.raises(ValueError, match=f"(?s){typo}.*{meant}"):
        wrap(make(), **{argument: typo})


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="(?s)zzz") as caught:
        wrap(make(), method="zzz")
    for name in sparseopt.available_methods():
        assert name in str(caught.value)


def test_argument_that_does_not_exist_is_refused():
    for typo in ("sparsity", "total_step", "deltat"):
        with pytest.raises(TypeError, match=typo):
            wrap(make(), **{typo: 0.1})


def test_all_arguments_after_the_model_are_keyword_only():
    model = make()
    with pytest.raises(TypeError):
        SparseOptimizer(build("SGD", model.parameters()), model, "rigl")


@pytest.mark.parametrize("inner", [None, [nn.Parameter(torch.ones(2, 2))], torch.optim.SGD, "SGD"])
def test_wrapped_object_must_be_an_optimizer(inner):
    with pytest.raises(TypeError, match="(?i)optimizer"):
        SparseOptimizer(inner, make())


def test_sparse_optimizer_is_not_wrapped_twice():
    model = make()
    optimizer = wrap(model)
    with pytest.raises((TypeError, ValueError), match="SparseOptimizer"):
        SparseOptimizer(optimizer, model)


def test_model_that_is_not_a_torch_module_is_refused():
    model = make()
    with pytest.raises(TypeError, match="model"):
        SparseOptimizer(build("SGD", model.parameters()), model.parameters())


def test_sparse_adam_is_refused_with_a_reason():
    """Its gradients are torch.sparse tensors, which know no mask."""
    model = make()
    with pytest.raises((TypeError, ValueError), match=r"SparseAdam") as caught:
        SparseOptimizer(torch.optim.SparseAdam(model.parameters()), model)
    assert len(str(caught.value)) > 60


def test_model_without_a_weight_that_can_be_sparse_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.PReLU())
    with pytest.raises(ValueError, match="(?i)no .*(weight|layer|parameter)"):
        wrap(model)
    bias = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="(?i)no .*(weight|layer|parameter)"):
        SparseOptimizer(torch.optim.SGD([bias], lr=0.1))


def test_model_of_which_the_optimizer_has_no_parameter():
    with pytest.raises(ValueError, match="(?i)no .*(weight|layer|parameter)"):
        SparseOptimizer(build("SGD", make().parameters()), make())


@pytest.mark.parametrize("argument", ["init", "mask"])
def test_mapping_that_names_no_layer(argument):
    value = 0.5 if argument == "init" else torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises((ValueError, KeyError), match="conv7"):
        wrap(make(), **{argument: {"conv7.weight": value}})


@pytest.mark.parametrize("density", [0.0, -1, 1.5, "much"])
def test_mapping_with_a_wrong_density(density):
    with pytest.raises((ValueError, TypeError), match="fc1"):
        wrap(make(), init={"fc1": density})


def test_schedule_given_twice_is_an_error():
    """`delta_t`, `alpha`, `t_end` belong to the optimizer; a method does not take them."""
    for argument in ("delta_t", "alpha", "t_end", "density"):
        with pytest.raises(TypeError, match=argument):
            RigL(**{argument: 1})


def test_regrow_given_to_the_method_and_to_the_optimizer_is_an_error():
    with pytest.raises((TypeError, ValueError), match="regrow"):
        wrap(make(), method=RigL(regrow="zero"), regrow="never")


def test_pruning_without_a_horizon_says_so_at_the_first_step():
    model, untouched = make(), make()
    optimizer = wrap(model, method="pruning", total_steps=None)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises((ValueError, RuntimeError), match="total_steps"):
        optimizer.step()
    for mine, theirs in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    optimizer.set_horizon(40)
    optimizer.step()
    assert optimizer.steps == 1
