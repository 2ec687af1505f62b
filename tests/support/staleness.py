"""Whether the committed results of the compatibility page still are those of the tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.compatibility import Pairs


def complaints(record: Mapping[str, Any], collected: Mapping[str, Pairs], root: Path) -> list[str]:
    """Everything that is wrong with the results, a sentence each.

    Args:
        record: What a run with the report's option wrote.
        collected: By test file, the pairs of part and test function in it. A file that is not
            among them is only asked to exist.
        root: The folder that files are relative to.
    """
    recorded: dict[str, Pairs] = {}
    for test in record["tests"]:
        pairs = {(part, test["test"]) for part in test["parts"]}
        recorded.setdefault(test["file"], set()).update(pairs)
    return [*_incomplete(record), *_differing(recorded, collected, root)]


def _incomplete(record: Mapping[str, Any]) -> list[str]:
    left_out = record["left_out"]
    found = [f"{file['file']} was left out: {file['reason']}" for file in left_out["files"]]
    if left_out["deselected"]:
        found.append(f"{left_out['deselected']} cases were deselected")
    return found + [
        f"{test['file']}::{test['test']}: {test[outcome]} {outcome}"
        for test in record["tests"]
        for outcome in ("failed", "not run")
        if test[outcome]
    ]


def _differing(
    recorded: Mapping[str, Pairs], collected: Mapping[str, Pairs], root: Path
) -> list[str]:
    found = [f"{file} is gone" for file in recorded if not (root / file).is_file()]
    for file, pairs in collected.items():
        results = recorded.get(file, set())
        found += [f"{file}::{test} under {part!r} is new" for part, test in pairs - results]
        found += [f"{file}::{test} under {part!r} is no more" for part, test in results - pairs]
    return sorted(found)
