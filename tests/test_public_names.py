"""Public names have the package as their module, so that pickles outlive a moved file."""

import pickle
import typing

import pytest
import torch

import sparseopt


@pytest.mark.parametrize("name", sparseopt.__all__)
def test_public_name_has_the_package_as_its_module(name):
    assert getattr(sparseopt, name).__module__ == "sparseopt"


@pytest.mark.parametrize("name", sparseopt.__all__)
def test_type_hints_of_public_name_resolve(name):
    assert isinstance(typing.get_type_hints(getattr(sparseopt, name)), dict)


@pytest.mark.parametrize(
    "value",
    [
        sparseopt.RigL(),
        sparseopt.NM(2, 4),
        sparseopt.UpdateSchedule(delta_t=10, alpha=0.3, t_end=100, decay="cosine"),
        sparseopt.CondensedLinear(torch.eye(3), torch.eye(3) != 0, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickle_of_public_class_names_no_file_of_the_package(value):
    pickled = pickle.dumps(value)
    assert b"sparseopt" in pickled
    assert b"sparseopt." not in pickled
    assert type(pickle.loads(pickled)) is type(value)
