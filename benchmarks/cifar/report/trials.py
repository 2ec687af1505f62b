"""The search's trials, found among the runs by what replaced the protocol's alpha and delta_t."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from benchmarks.cifar.report.summary import Group, Statistic, Variant

SEARCHED = frozenset({"alpha", "delta_t"})


@dataclass(frozen=True)
class Trial:
    """One pair of settings.

    Attributes:
        variant: What was trained.
        alpha: First drop fraction.
        delta_t: Steps between updates.
        validation: Validation accuracy of each seed: what the search maximises.
        test: Test accuracy of each seed.
    """

    variant: Variant
    alpha: float
    delta_t: int
    validation: Statistic
    test: Statistic


@dataclass(frozen=True)
class Trials:
    """All trials of one variant.

    Attributes:
        variant: The variant with the protocol's own settings, which is the reference.
        reference: The protocol's own alpha and delta_t.
        trials: In the order of alpha, then delta_t.
    """

    variant: Variant
    reference: tuple[float, int]
    trials: list[Trial]

    @property
    def complete(self) -> list[Trial]:
        """The trials that have the most seeds; means over fewer vary more."""
        most = max(len(trial.validation.values) for trial in self.trials)
        return [trial for trial in self.trials if len(trial.validation.values) == most]

    @property
    def best(self) -> Trial:
        """The complete trial with the highest mean validation accuracy."""
        return max(self.complete, key=lambda trial: trial.validation.mean)

    def study(self) -> optuna.Study:
        """The complete trials as Optuna's plots want them, values in percent."""
        alphas = [trial.alpha for trial in self.complete]
        delta_ts = [trial.delta_t for trial in self.complete]
        distributions = {
            "alpha": optuna.distributions.FloatDistribution(min(alphas), max(alphas)),
            "delta_t": optuna.distributions.IntDistribution(min(delta_ts), max(delta_ts)),
        }
        study = optuna.create_study(direction="maximize")
        for trial in self.complete:
            study.add_trial(
                optuna.create_trial(
                    params={"alpha": trial.alpha, "delta_t": trial.delta_t},
                    distributions=distributions,
                    value=100 * trial.validation.mean,
                )
            )
        return study


def searches(group: Group) -> list[Trials]:
    """The trials of every variant that has any."""
    sparsity = group.settings["sparsity"]
    own = (float(sparsity["alpha"]), int(sparsity["delta_t"]))
    swept = {_masks(variant) for variant in group.varied if variant.setting("lr") is not None}
    found: dict[Variant, list[Trial]] = {}
    for variant in group.varied:
        # Settings that other learning rates were tried with are those of the sweep over these.
        if dict(variant.settings).keys() <= SEARCHED and _masks(variant) not in swept:
            alpha, delta_t = variant.setting("alpha"), variant.setting("delta_t")
            trial = Trial(
                variant,
                # What only repeats the protocol's own is not among a run's settings.
                own[0] if alpha is None else alpha,
                own[1] if delta_t is None else int(delta_t),
                group.statistic(variant, "accuracy", "validation"),
                group.statistic(variant, "accuracy", "test"),
            )
            found.setdefault(variant.plain, []).append(trial)
    return [
        Trials(variant, own, sorted(trials, key=lambda trial: (trial.alpha, trial.delta_t)))
        for variant, trials in found.items()
    ]


def _masks(variant: Variant) -> tuple[Variant, float | None, float | None]:
    """What is trained, and how its masks move."""
    return variant.plain, variant.setting("alpha"), variant.setting("delta_t")
