"""A session: all chosen runs one after the other, each recorded as soon as it ends."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from benchmarks.cifar.accounting import count
from benchmarks.cifar.environment import describe_environment
from benchmarks.cifar.planning import estimate_seconds, format_duration
from benchmarks.cifar.protocol import Protocol
from benchmarks.cifar.results import Record, append_result, read_results
from benchmarks.cifar.runspec import RunSpec
from benchmarks.cifar.training import Progress, Run, Splits, weights_hash

# A log file is not a terminal: there a bar every half minute is enough.
LOG_INTERVAL = 30.0


@dataclass(frozen=True)
class Folder:
    """Everything a session writes is in this one folder."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.jsonl"

    def checkpoint(self, key: str) -> Path:
        return self.root / "checkpoints" / f"{key}.pt"


class Session:
    """The chosen runs of one protocol on one data set.

    Args:
        protocol: What all runs share.
        specs: The runs.
        splits: The images.
        fingerprint: Says which images those are.
        folder: Where results and checkpoints go.
    """

    def __init__(
        self,
        protocol: Protocol,
        specs: list[RunSpec],
        splits: Splits,
        fingerprint: str,
        folder: Folder,
    ) -> None:
        self.protocol = protocol
        self.specs = specs
        self.splits = splits
        self.fingerprint = fingerprint
        self.folder = folder
        # Now and not when a run ends: by then the checkout may be at another commit.
        self.environment = describe_environment(splits.device)
        finished = {record["key"] for record in read_results(folder.results)}
        self.left = [spec for spec in specs if self.key(spec) not in finished]

    def key(self, spec: RunSpec) -> str:
        """The run's name in the results file: any other setting or data gives another one."""
        return spec.key(self.protocol, self.fingerprint)

    def print_plan(self) -> dict[RunSpec, float]:
        """Print what will run and about how long it takes; return the estimates."""
        print(f"{self.protocol.label}: {self.protocol.describe()}", flush=True)
        finished = len(self.specs) - len(self.left)
        print(f"{len(self.specs)} runs, {finished} of them finished, {len(self.left)} to do")
        if not self.left:
            return {}
        print(f"measuring a few steps on {self.splits.device.type} ...", flush=True)
        estimates = estimate_seconds(self.protocol, self.left, self.splits)
        for spec in self.left:
            begun = self.folder.checkpoint(self.key(spec)).exists()
            note = ", begun, will resume" if begun else ""
            print(f"  {spec.label:<28} about {format_duration(estimates[spec])}{note}")
        print(f"together about {format_duration(sum(estimates.values()))}", flush=True)
        return estimates

    def run_all(self, estimates: dict[RunSpec, float]) -> list[RunSpec]:
        """Run what is left, one after the other; return the runs that failed.

        A run that raises an error doesn't take those after it along: a night's work would be lost.
        """
        failed = []
        remaining = sum(estimates.values())
        for number, spec in enumerate(self.left, start=1):
            remaining -= estimates[spec]
            title = f"[{number}/{len(self.left)}] {spec.label} ({self.protocol.label})"
            try:
                record = self.run_one(spec, title, remaining)
            except Exception:
                traceback.print_exc()
                print(f"{title}: failed, see the error above", flush=True)
                failed.append(spec)
                continue
            accuracy = record["accuracy"]["test"]
            duration = format_duration(record["seconds"])
            print(f"{title}: test accuracy {accuracy:.2%} after {duration}", flush=True)
        return failed

    def run_one(self, spec: RunSpec, title: str, seconds_after: float) -> Record:
        """Run or resume one run and append its result.

        Args:
            spec: The run.
            title: What the progress bar is called.
            seconds_after: Estimate for all later runs, shown beside the bar.
        """
        checkpoint = self.folder.checkpoint(self.key(spec))
        run = Run(self.protocol, spec, self.splits)
        if run.resume(checkpoint):
            print(f"{title}: resumed after epoch {run.epoch}", flush=True)
        with _bar(run, title) as bar:
            outcome = run.finish(checkpoint, _Display(bar, seconds_after))
        record = self._record(spec, run)
        record["accuracy"] = {
            "validation": outcome.validation_accuracy,
            "test": outcome.test_accuracy,
        }
        append_result(self.folder.results, record)
        checkpoint.unlink(missing_ok=True)
        return record

    def _record(self, spec: RunSpec, run: Run) -> Record:
        return {
            "key": self.key(spec),
            "label": spec.label,
            "run": spec.as_dict(),
            "protocol": {
                "name": self.protocol.name,
                "reduced": self.protocol.reduced,
                "label": self.protocol.label,
                "summary": self.protocol.summary,
                "description": self.protocol.describe(),
                "settings": self.protocol.settings(),
            },
            "data": self.fingerprint,
            "curve": run.outcome.curve,
            "seconds": round(run.outcome.seconds, 3),
            "steps": run.total_steps,
            "density": run.density,
            **count(run),
            "weights_sha256": weights_hash(run.model),
            "environment": self.environment,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def _bar(run: Run, title: str) -> tqdm[None]:
    interval = 0.5 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        desc=title,
        total=run.total_steps,
        initial=run.epoch * run.steps_per_epoch,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        unit="step",
        dynamic_ncols=True,
    )


class _Display:
    """Shows a run's progress on its bar."""

    def __init__(self, bar: tqdm[None], seconds_after: float) -> None:
        self.bar = bar
        self.seconds_after = seconds_after

    def __call__(self, progress: Progress) -> None:
        accuracy = progress.validation_accuracy
        parts = [
            f"epoch {progress.epoch}",
            "val -" if accuracy is None else f"val {accuracy:.2%}",
            f"live {progress.density:.3f}",
        ]
        if self.seconds_after > 0:
            parts.append(f"then {format_duration(self.seconds_after)} more")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.update()
