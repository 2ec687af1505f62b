"""Every exception of the library has one base, and is a built-in exception too."""

import inspect

import pytest
import torch

import sparseopt
from sparseopt import SparseOptError
from sparseopt.utils import errors

ALL = [getattr(errors, name) for name in errors.__all__ if name != "SparseOptError"]


def test_exceptions_of_the_module_are_all_public():
    assert set(errors.__all__) <= set(sparseopt.__all__)
    defined = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_exception_has_the_common_base_and_a_built_in_one(error):
    assert issubclass(error, SparseOptError)
    assert issubclass(error, (ValueError, RuntimeError))


def test_exception_is_caught_by_its_base_and_by_the_built_in_one():
    model = torch.nn.LayerNorm(8)
    for base in (SparseOptError, ValueError):
        with pytest.raises(base):
            sparseopt.SparseOptimizer(torch.optim.SGD(model.parameters()), model)
