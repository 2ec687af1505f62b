"""What a machine would measure, made up."""

import pytest

from sparseopt.speedup.inference import assembly
from sparseopt.speedup.inference import condensation as room
from sparseopt.speedup.timing import Timing


@pytest.fixture
def times(monkeypatch):
    """Make up the seconds of the whole model by way: what a machine would say varies."""
    seconds = {}

    def made_up(calls, **_):
        return {name: Timing((seconds.get(name, 9.0),) * 4) for name in calls}

    def all_live(candidates, device):
        return {one.site.name: "live" if "live" in one.layers else "dense" for one in candidates}

    monkeypatch.setattr(room, "time_in_turn", made_up)
    monkeypatch.setattr(assembly, "choose_layers", all_live)
    return seconds
