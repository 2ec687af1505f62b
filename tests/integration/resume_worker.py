"""Trains one of the runs below from its checkpoint to its end, in a process of its own."""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.catalogue import model_for
from tests.support.looking import per_weight_state
from tests.support.own_methods import FrequentGradient, SmoothedSalience
from tests.support.training import train
from tests.support.wrapping import settings_with, wrap

STEPS, STOP = 30, 13
SETTINGS = settings_with(total_steps=STEPS, delta_t=4)

# method, inner optimizer, state mode of the interrupted run, and of the resumed one
RUNS = [
    (method, name, out_of, into)
    for method, (name, out_of, into) in itertools.product(
        ["set", "rigl", "pruning", "snfs", "granet", "mest"],
        [
            ("AdamW", "live", "live"),
            ("AdamW", "masked", "masked"),
            ("AdamW", "live", "masked"),
            ("SGD", "masked", "live"),
            ("Rprop", "live", "live"),
            ("Adafactor", "auto", "auto"),
            ("Muon", "auto", "auto"),
            ("LBFGS", "auto", "auto"),
        ],
    )
] + [
    (method.name, name, out_of, into)
    for method in (SmoothedSalience, FrequentGradient)
    for name, out_of, into in [("AdamW", "live", "live"), ("SGD", "masked", "live")]
]


def begin(method: str, name: str, state: str):
    model = model_for(name)
    optimizer = wrap(model, name, method=method, state=state, **SETTINGS)
    return model, optimizer


def outcome(model, optimizer) -> dict:
    """Everything that a checkpoint has to restore, in a form that `torch.save` takes."""
    return {
        "weights": {name: p.detach() for name, p in model.named_parameters()},
        "masks": dict(optimizer.masks),
        "history": [vars(record) for record in optimizer.history],
        "steps": optimizer.steps,
        "state": {
            layer.name: {
                key: torch.from_numpy(value)
                for key, value in per_weight_state(optimizer, layer.weight, layer.mask).items()
            }
            for layer in optimizer.layers
        },
        "inner": flat(optimizer.inner.state_dict()["state"]),
    }


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values in nested dictionaries and lists, by path."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            path: leaf for key, held in items for path, leaf in flat(held, f"{name}/{key}").items()
        }
    return {name: value}


def main(folder: Path) -> None:
    torch.manual_seed(12345)
    for number, (method, name, _, into) in enumerate(RUNS):
        checkpoint = torch.load(folder / f"checkpoint-{number}.pt")
        model, optimizer = begin(method, name, into)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        train(model, optimizer, STEPS - STOP, start=STOP)
        torch.save(outcome(model, optimizer), folder / f"outcome-{number}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
