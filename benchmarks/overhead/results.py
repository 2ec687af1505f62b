"""The results file: one entry for each case and kind of figure, replaced when measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.files import lock_of, write_atomic
from benchmarks.overhead.contenders import OPTIMIZERS, OURSELVES
from benchmarks.overhead.workloads import WORKLOADS

Entry = dict[str, Any]
#: The version of another library, and the reason why it is absent.
Peer = dict[str, str | None]

FIGURES = ("steps", "training", "profile")
#: Names of contenders in older results files, and their names now.
RENAMED = {"sparseopt, compact": OURSELVES}


class Results:
    """All entries measured so far, in the JSON file ``path``, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = self._read()
        self.entries: list[Entry] = content.get("entries", [])
        self.peers: dict[str, Peer] = content.get("peers", {})

    def put(self, entry: Entry, peers: Mapping[str, Peer]) -> None:
        """Add an entry and the libraries that were asked to take part, and write all.

        Earlier entries of the same case and figures, and earlier facts about these libraries, are
        replaced.
        """
        # Another process may have measured another part in the meantime.
        with lock_of(self._path):
            known = self._read()
            kept = [other for other in known.get("entries", []) if _key(other) != _key(entry)]
            self.entries = sorted([*kept, entry], key=_key)
            self.peers = {**known.get("peers", {}), **peers}
            content = {"peers": self.peers, "entries": self.entries}
            write_atomic(self._path, (json.dumps(content, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        return json.loads(self._path.read_text(), object_pairs_hook=_with_present_names)

    def of(self, figures: str, workload: str, density: float) -> list[Entry]:
        """Return the entries of one table, in the order of the optimizers."""
        wanted = (figures, workload, density)
        keys = ("figures", "workload", "density")
        return [one for one in self.entries if tuple(one[key] for key in keys) == wanted]

    def groups(self) -> Sequence[tuple[str, float]]:
        """Return every model and density that has an entry."""
        return list(dict.fromkeys((entry["workload"], entry["density"]) for entry in self.entries))


def threads(entry: Entry) -> int:
    """The CPU threads of an entry. Measurements with other numbers of threads are other cases."""
    return int(entry["made_with"]["threads"])


def _with_present_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in pairs}


def _key(entry: Entry) -> tuple[Any, ...]:
    return (
        list(WORKLOADS).index(entry["workload"]),
        entry["density"],
        OPTIMIZERS.index(entry["optimizer"]),
        FIGURES.index(entry["figures"]),
        threads(entry),
    )
