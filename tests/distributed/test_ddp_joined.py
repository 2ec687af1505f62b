"""Two ranks train as one process on the batches of both, except for the order of sums.

Another order of summation changes the last bits of a score. So if the scores of two weights are as
close as that, the two runs may drop or grow different ones. Such differences are counted, and each
must vanish when the scores in question are nudged by a hair.
"""

import copy
import json

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from tests.distributed.ddp_joined import (
    MAX_NORM,
    NAMES,
    SEED,
    SETTINGS,
    STEPS,
    Run,
    begin,
    clip,
    loss_of,
    train,
)
from tests.support.looking import logical, masks_of
from tests.support.oracles import oracle_for
from tests.support.ranks import RANKS, needs_gloo, two_ranks

pytestmark = needs_gloo

RUNS = [
    Run("static", "AdamW"),
    Run("set", "AdamW"),
    Run("rigl", "SGD"),
    Run("rigl", "AdamW"),
    Run("pruning", "SGD"),
]


class Comparison:
    """A run of one process that is compared with the checkpoints of two ranks.

    Attributes:
        moved: How many weights changed between live and dropped in all updates together.
        fell_otherwise: At how many weights the two runs had different masks after an update.
    """

    def __init__(self, run: Run, *, hair: float):
        self.run, self.hair = run, hair
        self.seen = two_ranks().run(train, run)[0]
        self.model, self.optimizer = begin(run)
        self.oracle = oracle_for(run.method, self.model, seed=SEED, names=NAMES, **SETTINGS)
        self.moved = self.fell_otherwise = 0

    def step(self, t: int) -> float:
        """One step on the batches of both ranks together; returns the norm before clipping."""
        self.optimizer.zero_grad()
        joined_loss(self.model, self.run, t).backward()
        norm = float(clip(self.model))
        updating = self.optimizer.is_update_step
        assert updating == (t in self.seen["updates"])
        if updating:
            self.update(t)
        else:
            self.optimizer.step()
        return norm

    def update(self, t: int) -> None:
        weights = {name: logical(p) for name, p in self.model.named_parameters()}
        gradients = {name: logical(p.grad) for name, p in self.model.named_parameters()}
        before = masks_of(self.optimizer)
        self.optimizer.step()
        mine, theirs = masks_of(self.optimizer), masks_in(self.seen["updates"][t])
        self.moved += differences(before, theirs)
        if differences(mine, theirs):
            self.fell_otherwise += differences(mine, theirs)
            assert are_near_ties(self.oracle, t, weights, gradients, mine, theirs, self.hair), t
            # From here on the two runs differ, so this run continues from the other's checkpoint.
            load(self.model, self.optimizer, self.seen["updates"][t])
        self.oracle.update(t, weights, gradients)
        self.oracle.masks = theirs


def joined_loss(model, run, t):
    """The loss over the samples of all ranks at step t as one batch."""
    samples = [sample for rank in range(RANKS) for sample in run.samples(rank, t)]
    return loss_of(model, samples) / RANKS


def load(model, optimizer, checkpoint):
    """The checkpoint of two ranks, without the prefix of DistributedDataParallel."""
    weights = dict(checkpoint["model"])
    consume_prefix_in_state_dict_if_present(weights, "module.")
    model.load_state_dict(weights)
    optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))


def masks_in(checkpoint):
    """The masks of a checkpoint, as the page on checkpoints describes it."""
    state = checkpoint["optimizer"]["state"]
    masks = {}
    for layer in json.loads(checkpoint["optimizer"]["param_groups"][0]["sparseopt"]["layers"]):
        full = torch.ones(layer["shape"], dtype=torch.bool)
        masks[layer["name"]] = logical(state[layer["index"]].get("sparse_mask", full))
    return masks


def differences(mine, theirs):
    return sum(int((mine[name] != theirs[name]).sum()) for name in NAMES)


def masks_of_oracle(oracle, t, weights, gradients):
    attempt = copy.deepcopy(oracle)
    attempt.update(t, weights, gradients)
    return attempt.masks


def are_near_ties(oracle, t, weights, gradients, mine, theirs, hair):
    """Whether the two sets of masks differ only at near ties.

    Weights and gradients are scaled by 1 + `hair` where only `theirs` is live, and by 1 - `hair`
    where only `mine` is.
    """

    def nudged(values):
        wanted = {name: theirs[name].astype(float) - mine[name].astype(float) for name in NAMES}
        return {name: values[name] * (1 + hair * wanted[name]) for name in NAMES}

    made = masks_of_oracle(oracle, t, nudged(weights), nudged(gradients))
    return differences(made, theirs) == 0


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.method}-{run.optimizer}")
def test_ranks_train_as_one_process_on_the_joined_batch(run):
    both = Comparison(run, hair=1e-5)
    clipped = 0
    for t in range(1, STEPS + 1):
        norm = both.step(t)
        assert norm == pytest.approx(float(both.seen["norms"][t - 1]), rel=1e-4)
        clipped += norm > MAX_NORM
    assert clipped > 5
    assert (both.moved > 1000) == (run.method != "static")
    assert both.fell_otherwise <= 1e-3 * both.moved

    model, optimizer = begin(run)
    load(model, optimizer, both.seen["final"])
    for mine, theirs in zip(both.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for layer, other in zip(both.optimizer.layers, optimizer.layers, strict=True):
        assert torch.equal(layer.mask, other.mask)
        for key, value in both.optimizer.state[layer.weight].items():
            theirs = optimizer.state[other.weight][key]
            torch.testing.assert_close(value, theirs, rtol=1e-3, atol=1e-6)


def test_masks_differ_only_at_near_ties_when_gradients_of_ranks_cancel():
    """The rounding is large enough here that some near ties fall differently."""
    both = Comparison(Run("rigl", "SGD", echo=1000.0), hair=2e-3)
    for t in range(1, STEPS + 1):
        both.step(t)
    assert 0 < both.fell_otherwise <= 1e-3 * both.moved


def test_growth_by_the_gradient_of_one_rank_is_no_near_tie():
    """Guards the tests above: they can tell an averaged gradient from a local one."""
    run = Run("rigl", "SGD")
    model, _ = begin(run)
    oracle = oracle_for("rigl", model, seed=SEED, names=NAMES, **SETTINGS)
    weights = {name: logical(p) for name, p in model.named_parameters()}
    gradients, masks = [], []
    for loss in (joined_loss(model, run, 3), loss_of(model, run.samples(0, 3))):
        model.zero_grad()
        loss.backward()
        gradients.append({name: logical(p.grad) for name, p in model.named_parameters()})
        masks.append(masks_of_oracle(oracle, 3, weights, gradients[-1]))
    assert differences(*masks) > 500
    assert not are_near_ties(oracle, 3, weights, gradients[0], *masks, hair=0.05)
