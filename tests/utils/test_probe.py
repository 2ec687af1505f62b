"""What a forward pass changes is restored: attributes, and what their containers hold."""

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from torch import nn

from sparseopt.utils.probe import preserve_attributes


@dataclass
class State:
    step: int = 0
    past: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    past: dict[str, int]


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


CHANGES = {
    "list": ([1, 2], lambda value: value.append(3)),
    "item of a list": ([1, 2], lambda value: value.__setitem__(0, 3)),
    "nested list": ({"inner": [[1]]}, lambda value: value["inner"][0].append(5)),
    "list in a tuple": (([1],), lambda value: value[0].clear()),
    "item of a dict": ({"a": 1}, lambda value: value.__setitem__("a", 2)),
    "set": ({1}, lambda value: value.add(2)),
    "deque": (deque([1, 2], maxlen=2), lambda value: value.append(3)),
    "ordered dict": (OrderedDict(a=1), lambda value: value.pop("a")),
    "default dict": (defaultdict(list), lambda value: value["a"].append(1)),
    "field": (State(), lambda value: setattr(value, "step", 3)),
    "new attribute of a dataclass": (State(), lambda value: setattr(value, "other", 3)),
    "list of a dataclass": (State(), lambda value: value.past.append(3)),
    "dict of a dataclass with slots": (Slotted({"a": 1}), lambda value: value.past.clear()),
    "namespace": (SimpleNamespace(a=[1]), lambda value: value.a.append(2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_attributes_hold_is_restored_at_any_depth(name):
    value, change = CHANGES[name]
    model = nn.Sequential(Holder(value))
    before = repr(value)
    with preserve_attributes(model):
        change(model[0].value)
        model[0].value = None
        model[0].added = 1
    assert model[0].value is value
    assert repr(value) == before
    assert not hasattr(value, "other")
    assert not hasattr(model[0], "added")


def test_containers_that_hold_each_other_are_restored():
    first, second = [1], {"a": 2}
    first.append(second)
    second["first"] = first
    with preserve_attributes(Holder(first)):
        first.append(3)
        second.clear()
    assert first == [1, second]
    assert second["a"] == 2
