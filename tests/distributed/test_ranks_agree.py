"""Over random nets, densities, schedules, methods and optimizers, all ranks have the same masks."""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.distributed.ranks_agree import first_steps_with_a_default_device, train
from tests.support.catalogue import ELEMENTWISE
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo

NETS = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 9), min_size=2, max_size=4),
        "convolutional": st.booleans(),
        "bias": st.booleans(),
    }
)
SETTINGS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["static", "set", "rigl", "pruning"]),
        "density": st.floats(0.02, 1.0),
        "init": st.sampled_from(["erk", "er", "uniform"]),
        "mask": st.sampled_from(["random", "magnitude"]),
        "delta_t": st.integers(1, 4),
        "total_steps": st.integers(8, 14),
        "alpha": st.floats(0, 1),
        "decay": st.sampled_from(["cosine", "linear", "constant"]),
        "seed": st.none() | st.integers(0, 2**31),
        "state": st.sampled_from(["auto", "masked"]),
    }
)
REGROW = st.sampled_from(["keep", "zero", "never"])
OPTIMIZERS = st.sampled_from([*ELEMENTWISE, "Adafactor"])
BUCKET_VIEWS, STATIC_GRAPH = {"gradient_as_bucket_view": True}, {"static_graph": True}
# Micro-batches a step, and options of DDP, which does not allow `static_graph` with `no_sync`.
WRAPPERS = st.sampled_from(
    [(1, {}), (2, {}), (1, BUCKET_VIEWS), (2, BUCKET_VIEWS), (1, STATIC_GRAPH)]
)


# Not shrunk: after a failure the two processes have to be started again.
@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])
@given(
    net=NETS,
    name=OPTIMIZERS,
    run=SETTINGS,
    regrow=REGROW,
    rank_seeds=st.tuples(st.integers(0, 999), st.integers(1000, 1999)),
    wrapper=WRAPPERS,
    optimizer_first=st.booleans(),
)
def test_ranks_agree_whatever_their_seeds_weights_and_data(
    net, name, run, regrow, rank_seeds, wrapper, optimizer_first
):
    if run["method"] in {"set", "rigl"}:
        run = {**run, "regrow": regrow}
    first, second = two_ranks().run(
        train,
        net,
        name,
        run,
        rank_seeds=rank_seeds,
        accumulate=wrapper[0],
        ddp=wrapper[1],
        optimizer_first=optimizer_first,
    )
    for what in ("masks", "weights"):
        for t, (mine, theirs) in enumerate(zip(first[what], second[what], strict=True)):
            for layer, tensor in mine.items():
                assert torch.equal(tensor, theirs[layer]), (what, layer, t)
    for what in ("targets", "updating", "history"):
        assert first[what] == second[what]
    assert_invariants(first, run["method"])


def assert_invariants(seen, method):
    """Counts are exact, masks rest between updates, and dropped weights are zero on all ranks."""
    for t, (masks, weights) in enumerate(zip(seen["masks"], seen["weights"], strict=True)):
        for name, mask in masks.items():
            live = int(mask.sum())
            assert live >= 1 if method == "pruning" else live == seen["targets"][name]
            assert not weights[name][~mask].any()
            if t and not seen["updating"][t - 1]:
                assert torch.equal(mask, seen["masks"][t - 1][name])
    if method == "pruning":
        final = sum(int(mask.sum()) for mask in seen["masks"][-1].values())
        assert final == sum(seen["targets"].values())


def test_first_step_compares_ranks_whatever_the_default_device():
    """The default device is "meta", because a machine may have only one other."""
    assert two_ranks().run(first_steps_with_a_default_device) == [2, 2]
