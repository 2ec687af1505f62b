"""Old spellings work and warn where the user wrote them."""

import dataclasses
import inspect
import pickle
import warnings

import pytest

from sparseopt.utils.deprecation import (
    renamed_arguments,
    renamed_fields,
    renamed_member,
    warn_old_spelling,
)


@renamed_arguments(decay="beta", old_size="size")
def smooth(beta, size=1):
    return beta, size


class Smoother:
    @renamed_arguments(decay="beta")
    def __init__(self, beta):
        self.beta = beta


@renamed_fields(decay="beta")
@dataclasses.dataclass(frozen=True)
class Average:
    beta: float = 0.9


def test_old_name_is_no_field_and_pickles_and_copies_do_not_warn():
    assert [field.name for field in dataclasses.fields(Average)] == ["beta"]
    assert repr(Average(0.5)) == "Average(beta=0.5)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pickle.loads(pickle.dumps(Average(0.5))) == Average(0.5)
        assert dataclasses.replace(Average(), beta=0.5) == Average(0.5)


def test_renamed_argument_by_its_old_name_gives_the_same_and_warns_at_the_caller():
    with pytest.warns(
        DeprecationWarning, match="decay= is an old spelling.* write beta="
    ) as caught:
        assert smooth(decay=0.9) == smooth(beta=0.9)
    assert [warning.filename for warning in caught] == [__file__]


def test_renamed_argument_of_a_class_works_and_warns_at_the_caller():
    with pytest.warns(DeprecationWarning, match="decay=") as caught:
        assert Smoother(decay=0.9).beta == 0.9
    assert [warning.filename for warning in caught] == [__file__]


def test_renamed_argument_by_its_new_name_or_place_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smooth(0.9, size=2) == (0.9, 2)


def test_renamed_argument_given_by_both_names_is_refused():
    with pytest.raises(TypeError, match="decay= is the old name of beta="):
        smooth(decay=0.9, beta=0.9)


def test_unknown_argument_is_refused_as_before():
    with pytest.raises(TypeError, match="dekay"):
        smooth(dekay=0.9)


def test_signature_shows_new_names_only():
    assert list(inspect.signature(smooth).parameters) == ["beta", "size"]


def test_member_by_its_old_name_works_and_warns_at_the_caller():
    class Tank:
        def volume(self, share=1.0):
            return 3.0 * share

        size = renamed_member("size", "volume")

    with pytest.warns(DeprecationWarning, match=r"\.size is an old .* write \.volume") as caught:
        assert Tank().size(0.5) == 1.5
    assert [warning.filename for warning in caught] == [__file__]


def test_old_spelling_is_reported_at_the_frame_that_is_asked_for():
    def library_function():
        warn_old_spelling("f(a, b)", "f((a, b))")

    with pytest.warns(DeprecationWarning, match=r"f\(a, b\) is an old spelling") as caught:
        library_function()
    line = inspect.currentframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
