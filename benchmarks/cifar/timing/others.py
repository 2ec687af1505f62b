"""How much of the machine other processes took while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# Of the first line's columns: user, nice, system, hardware and software interrupts, stolen time.
WORK = (1, 2, 3, 6, 7, 8)


class OtherWork:
    """Counts from its construction on.

    Args:
        stat: The system's account of what its processors did.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._begun = time.perf_counter(), self._others()

    def processors(self) -> float | None:
        """How many processors other processes kept busy until now, on average.

        Returns:
            None where the system gives no account.
        """
        (clock, before), now = self._begun, self._others()
        if before is None or now is None:
            return None
        return round(max(0.0, now - before) / (time.perf_counter() - clock), 2)

    def _others(self) -> float | None:
        """Seconds that all processors together worked for others since the machine began."""
        if not self._stat.exists():
            return None
        columns = self._stat.read_text().splitlines()[0].split()
        worked = sum(int(columns[index]) for index in WORK) / os.sysconf("SC_CLK_TCK")
        return worked - time.process_time()
