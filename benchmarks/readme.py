"""Write the README's tables anew from the committed results: ``python benchmarks/readme.py``."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
BLOCK = "<!-- results:{name} -->{text}<!-- end of results:{name} -->"


def rewritten(readme: str) -> str:
    """The README with its tables as the committed results have them.

    Raises:
        ValueError: If the comments around one of the tables are missing.
    """
    texts = {
        "cifar": cifar_text(),
        "overhead": overhead_text(),
        "steps": steps_text(),
        "speed": speed_text(),
    }
    for name, text in texts.items():
        block = BLOCK.format(name=name, text=f"\n{text}\n")
        pattern = BLOCK.format(name=name, text=".*?")
        readme, count = re.subn(pattern, lambda _, block=block: block, readme, flags=re.DOTALL)
        if count != 1:
            raise ValueError(
                f"README.md has the comment <!-- results:{name} --> and its end {count} times "
                "instead of once"
            )
    return readme


def cifar_text() -> str:
    """Accuracies and FLOPs, with the protocol before them and what they say after."""
    from benchmarks.cifar import overview as cifar

    paragraphs = []
    for group in cifar.headline():
        variants = cifar.main_variants(group)
        paragraphs += [
            cifar.protocol(group),
            "\n".join(cifar.accuracy_table(group, variants)),
            " ".join([cifar.COLUMNS, *cifar.order_sentences(group, variants)]),
        ]
    reports = (f"[{folder.name}]({_report(folder)})" for folder in cifar.folders())
    paragraphs.append(f"Everything else, all densities and every seed: {', '.join(reports)}.")
    return _joined(paragraphs)


def overhead_text() -> str:
    """Time and memory of the wrapper, as multiples of the plain optimizer's."""
    from benchmarks import overview
    from benchmarks.overhead.results import Results

    results = Results(overview.OVERHEAD)
    machines = overview.cost_machines(results)
    return _joined(
        [
            f"What the wrapper costs at density {overview.DENSITY:g}, on {machines}.",
            "\n".join(overview.cost_table(results)),
            overview.COST_COLUMNS,
            f"All figures, beside other libraries: [report]({_report(overview.OVERHEAD.parent)}).",
        ]
    )


def steps_text() -> str:
    """Time of whole training steps on live weights only."""
    from benchmarks import overview
    from benchmarks.speed.records import read_records
    from benchmarks.speed.steps import report

    found = (one for one in read_records(overview.SPEED) if one["figure"] == "steps")
    records = [record for record in found if record["threads"] == 1]
    return _joined(
        [
            report.machine_words(records),
            "\n".join(report.steps_table(records)),
            f"{report.INTRODUCTION} [More of it](docs/results/live-training.md).",
        ]
    )


def speed_text() -> str:
    """Time of models without their dropped channels, in inference and in training."""
    from benchmarks import overview
    from benchmarks.common.environment import machines

    timed = {figure: overview.speed_records(figure) for figure in ("inference", "training")}
    made = machines(one["environment"] for records in timed.values() for one in records)
    return _joined(
        [
            f"Time and FLOPs as multiples of the dense model's, on {made}.",
            *(
                "\n".join(overview.speed_table(figure, records))
                for figure, records in timed.items()
            ),
            overview.SPEED_WORDS,
            f"Sparse linear layers, and which channels move: [report]({_report(overview.SPEED)}).",
        ]
    )


def _joined(paragraphs: list[str]) -> str:
    """Paragraphs and tables one after the other; lines of prose as short as those around them."""
    wrap = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(
        text.rstrip() if text.startswith("|") else wrap.fill(text) for text in paragraphs
    )


def _report(folder: Path) -> str:
    return (folder / "report.md").relative_to(ROOT).as_posix()


def main() -> None:
    """Write the file."""
    # Run as a script, Python puts this folder first; the package is found from the root.
    sys.path[0] = str(ROOT)
    readme = ROOT / "README.md"
    readme.write_text(rewritten(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
