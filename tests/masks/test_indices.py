"""Positions of live weights."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt.masks.indices import match_positions, merged


@given(
    masks=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    back=st.booleans(),
)
def test_positions_that_stay_and_grow_together(masks: list[tuple[bool, bool]], back: bool):
    """For each position that is live afterwards, its place among those live before, from 1."""
    before = np.array([live for live, _ in masks])
    drawn = np.array([marked for _, marked in masks])
    survivors = before & drawn
    # Weights that were just dropped may grow again.
    grown = ~survivors & drawn if not back else ~survivors & (drawn | before)
    after = survivors | grown
    place = np.where(before, np.cumsum(before), 0)
    where, stay, new = (
        torch.from_numpy(np.flatnonzero(which)).int() for which in (before, survivors, grown)
    )

    positions = merged(stay, new)
    places, was_live = match_positions(where, positions, before.size)

    assert positions.tolist() == np.flatnonzero(after).tolist()
    assert was_live.tolist() == before[after].tolist()
    assert places[was_live].tolist() == (place[after] - 1)[before[after]].tolist()
