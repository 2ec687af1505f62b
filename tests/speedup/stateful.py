"""Models whose ``forward()`` keeps a number between calls, in a container or a dataclass."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Steps:
    done: int = 0
    past: list[int] = field(default_factory=list)


def count_in_field(state):
    state.done += 1
    return state.done


def count_in_list_of_dataclass(state):
    state.past.append(0)
    return len(state.past)


def count_in_deque(state):
    state.append(state[-1] + 1)
    return state[-1]


def count_in_dict(state):
    state["done"] += 1
    return state["done"]


def count_in_nested_list(state):
    state["done"][0] += 1
    return state["done"][0]


def count_in_tensor_of_dict(state):
    state["done"] = state["done"] + 1
    return state["done"]


#: For each kind of state: a function that makes it, and one that counts in it.
STATES = {
    "field of a dataclass": (Steps, count_in_field),
    "list of a dataclass": (Steps, count_in_list_of_dataclass),
    "deque": (lambda: deque([0], maxlen=2), count_in_deque),
    "item of a dict": (lambda: {"done": 0}, count_in_dict),
    "item of a nested list": (lambda: {"done": [0]}, count_in_nested_list),
    "tensor of a dict": (lambda: {"done": torch.zeros(())}, count_in_tensor_of_dict),
}


class Counting(nn.Module):
    """Its output is proportional to the number of its calls."""

    def __init__(self, kind, hidden=16):
        super().__init__()
        self.first, self.last = nn.Linear(16, hidden), nn.Linear(hidden, 8)
        make, self.count = STATES[kind]
        self.state = make()

    def forward(self, x):
        return self.last(self.first(x).relu()) * self.count(self.state)
