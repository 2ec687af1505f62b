"""What the wrapper was asked to cost at most, and what it was measured to cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.overhead.building import PEER_BY_NAME
from benchmarks.overhead.contenders import AGAIN, OURS
from benchmarks.overhead.results import Entry, Results
from benchmarks.overhead.tables import all_in, share_of_training

OURSELVES = next(iter(OURS))
LARGE = "gpt"
SMALL = "wrn-22-2"
DENSITY = 0.1
NOT_YET = "not measured"
#: ``step()`` as a multiple of plain's, by inner optimizer.
STEP_BOUNDS = {
    "sgd-for-loop": 0.8,
    "sgd-foreach": 0.8,
    "sgd-fused": 0.8,
    "adamw-for-loop": 0.25,
    "adamw-foreach": 0.25,
    "adamw-fused": 1.1,
}
#: A mask update as a multiple of a plain AdamW for-loop step.
UPDATE_BOUND = 3.0


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        cost: What is measured, and on what.
        bound: What was asked for, in words.
        found: What was measured, in words.
        met: Whether it is what was asked for; None if there is nothing to compare.
    """

    cost: str
    bound: str
    found: str
    met: bool | None


def targets(results: Results) -> list[Target]:
    """Return every row, measured or not."""
    large = {entry["optimizer"]: entry for entry in results.of("steps", LARGE, DENSITY)}
    for_loops = _present(large, ("adamw-for-loop", "adamw-foreach"))
    sgd = _present(large, [name for name in large if name.startswith("sgd")])
    adamw = _present(large, [name for name in large if name.startswith("adamw")])
    return [
        _at_most(
            "`step()`, AdamW for-loop or foreach",
            STEP_BOUNDS["adamw-for-loop"],
            _steps(for_loops),
        ),
        _at_most("`step()`, SGD with momentum", STEP_BOUNDS["sgd-for-loop"], _steps(sgd)),
        _at_most(
            "`step()`, AdamW fused",
            STEP_BOUNDS["adamw-fused"],
            _steps(_present(large, ("adamw-fused",))),
        ),
        _small_share(results),
        _at_most(
            "state and index, AdamW, bytes (what a step needs for a moment apart)",
            0.16,
            [(entry, _held(entry, "state", "index")) for entry in adamw],
            timed=False,
        ),
        _masks(adamw),
        _at_most(
            "mask update, as a multiple of a plain AdamW for-loop step",
            UPDATE_BOUND,
            [(entry, ratio) for entry in large.values() if (ratio := _update(entry, OURSELVES))],
        ),
        _fastest("ordinary step, masking included", list(large.values()), _ordinary),
        _fastest("mask update", list(large.values()), _update),
        _fastest("whole training step", results.of("training", LARGE, DENSITY), _whole),
    ]


def _present(entries: dict[str, Entry], names: Iterable[str]) -> list[Entry]:
    return [entries[name] for name in names if name in entries]


def _at_most(
    cost: str, bound: float, found: Sequence[tuple[Entry, float]], *, timed: bool = True
) -> Target:
    """A target for each optimizer of ``found``, of which the worst decides."""
    where = f"{cost}; 25 M weights, density {DENSITY:g}"
    if not found:
        return Target(where, f"<= {bound:g}", NOT_YET, None)
    words = [
        f"{entry['optimizer']} {value:.3f}{_noise(entry) if timed else ''}"
        for entry, value in found
    ]
    return Target(
        where, f"<= {bound:g}", "; ".join(words), all(value <= bound for _, value in found)
    )


def _small_share(results: Results) -> Target:
    cost = "hooks and `step()` beyond plain's, share of a training step; WRN-22-2, batch 128"
    found = []
    for training in results.of("training", SMALL, DENSITY):
        steps = results.find("steps", SMALL, DENSITY, training["optimizer"])
        share = None if steps is None else share_of_training(training, steps, OURSELVES)
        if share is not None:
            found.append((training, share))
    if not found:
        return Target(cost, "<= 0.01", NOT_YET, None)
    words = [
        f"{entry['optimizer']} {share:+.4f} (plain, again "
        f"{entry['contenders'][AGAIN]['beyond']['median']:+.4f})"
        for entry, share in found
    ]
    return Target(cost, "<= 0.01", "; ".join(words), all(share <= 0.01 for _, share in found))


def _masks(entries: Sequence[Entry]) -> Target:
    cost, bound = "masks, what has been explored included, bytes a weight", "<= 1"
    if not entries:
        return Target(cost, bound, NOT_YET, None)
    size = entries[0]["contenders"][OURSELVES]["bytes"]["masks"] / entries[0]["sparse_weights"]
    return Target(cost, bound, f"{size:.3f}", size <= 1.0)


def _fastest(
    cost: str, entries: Sequence[Entry], measure: Callable[[Entry, str], float | None]
) -> Target:
    """Us against the others, of which the two fastest are named, by multiples of plain."""
    bound = "faster than the fastest"
    words, met = [], True
    for entry in entries:
        others = {
            name: value
            for name in entry["contenders"]
            if name in PEER_BY_NAME and (value := measure(entry, name)) is not None
        }
        own = measure(entry, OURSELVES)
        if not others or own is None:
            continue
        first_two = sorted(others, key=lambda name: others[name])[:2]
        met = met and own < others[first_two[0]]
        named = [f"{name} {others[name]:.2f}" for name in first_two]
        words.append(f"{entry['optimizer']} {own:.2f}, {', '.join(named)}")
    where = f"{cost}; 25 M weights, density {DENSITY:g}"
    return Target(where, bound, "; ".join(words) or NOT_YET, met if words else None)


def _steps(entries: Sequence[Entry]) -> list[tuple[Entry, float]]:
    return [(entry, entry["contenders"][OURSELVES]["step"]["ratio"]["median"]) for entry in entries]


def _held(entry: Entry, *kinds: str) -> float:
    ours, plain = (entry["contenders"][name]["bytes"] for name in (OURSELVES, "plain"))
    return float(sum(ours[kind] for kind in kinds) / plain["state"])


def _ordinary(entry: Entry, name: str) -> float | None:
    return all_in(entry["contenders"][name])


def _update(entry: Entry, name: str) -> float | None:
    summary = entry["contenders"][name]["update"]["ratio_to_reference"]
    return None if summary is None else float(summary["median"])


def _whole(entry: Entry, name: str) -> float | None:
    return float(entry["contenders"][name]["whole"]["ratio"]["median"])


def _noise(entry: Entry) -> str:
    """How far two copies of the plain optimizer are apart in the same rounds."""
    spread = entry["contenders"][AGAIN]["step"]["ratio"]
    return f" (plain, again {spread['q1']:.2f} to {spread['q3']:.2f})"
