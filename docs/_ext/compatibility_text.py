"""From the file that the test suite writes to the Markdown of the compatibility page."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]

NOTHING = "-"
IMPLEMENTATIONS = ("for-loop", "foreach", "fused")


def overview(record: Record) -> list[str]:
    """When and with what everything ran, and a table with a row for each part."""
    about = record["environment"]
    ran = (
        f"All of it ran on {record['date'].partition('T')[0]} with "
        f"{' and '.join(versions(record, ['torch', 'python']))}, on {', '.join(about['devices'])}; "
        "the rest is [at the end](#made-with)."
    )
    rows = []
    for entry in record["parts"]:
        name = entry["part"]
        tests = tests_of(record, name)
        rows.append(
            [
                f"[{literal(name)}](#{slug(name)})",
                str(len(tests)),
                outcomes(tests),
                "; ".join(f"{count}: {reason}" for reason, count in skips(tests)) or NOTHING,
                ", ".join(versions(record, entry["packages"])) or NOTHING,
            ]
        )
    return [ran, "", *table(["part", "tests", "passed", "skipped, and why", "with"], rows)]


def part(record: Record, name: str) -> list[str]:
    """What holds: a sentence for each test, and what it was run with."""
    tests = tests_of(record, name)
    if not tests:
        return ["*No test proves anything here yet.*"]
    return [line for test in tests for line in bullet(test)]


def bullet(test: Record) -> list[str]:
    sentence = f"**{literal(upper_first(test['sentence']))}.**"
    if not test["passed"]:
        sentence = f"*Not proven by this run:* {sentence}"
    facts = [f"`{test['file']}`"]
    if len(test["cases"]) != test["passed"] or test["passed"] > 1:
        facts.insert(0, f"{outcomes([test])} passed")
        facts[1:1] = [f"{count} skipped: {reason}" for reason, count in skips([test])]
    names = components(test["cases"])
    return [
        f"- {sentence} {test['explanation'] or ''}".rstrip(),
        "",
        "  " + " · ".join([f"With {names}", *facts] if names else facts),
        "",
    ]


def outcomes(tests: Sequence[Record]) -> str:
    """How many cases passed, after whatever else happened to them but skipping."""
    counts = {key: sum(test[key] for test in tests) for key in ("failed", "not run")}
    other = [f"**{count} {outcome}**" for outcome, count in counts.items() if count]
    return ", ".join([*other, str(sum(test["passed"] for test in tests))])


def skips(tests: Iterable[Record]) -> list[tuple[str, int]]:
    """Every reason, with the number of cases that were skipped for it."""
    cases = [case for test in tests for case in test["cases"]]
    reasons = Counter(case["reason"] for case in cases if case["outcome"] == "skipped")
    return [(literal(reason), count) for reason, count in reasons.items()]


def components(cases: Sequence[Record]) -> str:
    """What a test ran with: of each parameter all values; the ids where that says no more."""
    names = list(cases[0]["params"])
    complete = all(list(case["params"]) == names for case in cases)
    one_scalar = len(names) == 1 and not any(
        isinstance(value, list | dict) for case in cases for value in case["params"].values()
    )
    if not complete or one_scalar:
        return literal(", ".join(dict.fromkeys(map(told_by_id, cases))))
    lists: dict[tuple[str | int, ...], dict[str, None]] = {}
    for case in cases:
        for name, value in case["params"].items():
            for place, text in named_values(name, value, (name,)):
                lists.setdefault(place, {})[text] = None
    return "; ".join(literal(", ".join(texts)) for texts in lists.values())


def told_by_id(case: Record) -> str:
    """The id, which for a bare number needs the name of its parameter to say anything."""
    for name, value in case["params"].items():
        if not isinstance(value, str) and case["id"] == str(value):
            return f"{name}={value}"
    return case["id"]


def named_values(
    name: str, value: Any, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The words for a value, each with where it stood, so that like is listed with like."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from named_values(name, entry, (*place, index))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield place, key if entry is True else f"{key}={entry}"
    else:
        yield place, value if isinstance(value, str) else f"{name}={value}"


def classes(record: Record, name: str) -> list[str]:
    """A table by class of torch's optimizers: what it was wrapped with in tests that passed."""
    merged: dict[str, dict[str, set[str]]] = {}
    for test in tests_of(record, name):
        for entry in test["wrapped"]:
            if entry["package"] == "torch":
                aspects = merged.setdefault(entry["optimizer"], {})
                for aspect in ("state", "dtypes", "used", "offered"):
                    aspects.setdefault(aspect, set()).update(entry[aspect])
    rows = [
        [
            f"`{optimizer}`",
            listed(sorted(seen["state"])) if seen["state"] else "refused",
            listed(sorted(seen["used"], key=implementations_first)),
            listed(sorted(seen["dtypes"])),
            listed(sorted(seen["offered"] - seen["used"], key=implementations_first)),
        ]
        for optimizer, seen in sorted(merged.items())
    ]
    return table(["class", "state", "options", "weights", "offered, not run"], rows)


def implementations_first(option: str) -> tuple[bool, str]:
    return option not in IMPLEMENTATIONS, option


def made_with(record: Record, command: str) -> list[str]:
    about = record["environment"]
    names = ["sparseopt", "python", "torch", "numpy", *about["packages"]]
    left_out = record["left_out"]
    lines = [
        f"- {record['date']}, commit {about['git_commit'] or 'unknown'}",
        f"- {', '.join(versions(record, names))}",
        f"- {about['system']}, {about['processor']}; devices: {', '.join(about['devices'])}",
    ]
    if left_out["deselected"]:
        lines.append(f"- **{left_out['deselected']} cases were deselected**")
    lines += [
        f"- **`{file['file']}` was left out**: {file['reason']}" for file in left_out["files"]
    ]
    return [*lines, "", "```bash", command, "```"]


def tests_of(record: Record, name: str) -> list[Record]:
    return [test for test in record["tests"] if name in test["parts"]]


def versions(record: Record, names: Iterable[str]) -> list[str]:
    about = record["environment"]
    found = {name: about[name] if name in about else about["packages"][name] for name in names}
    return [f"{name} {version}" if version else f"no {name}" for name, version in found.items()]


def listed(values: Iterable[str]) -> str:
    return ", ".join(literal(value) for value in values) or NOTHING


def literal(text: str) -> str:
    """Text that Markdown leaves as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", " ".join(text.split()))


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
