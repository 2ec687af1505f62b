"""The directive that shows what was measured of the kernels: its argument is a part of it."""

from collections.abc import Callable, Iterator

from overviews import Overview
from sphinx.application import Sphinx

from benchmarks import overview
from benchmarks.common.tables import paragraph
from benchmarks.speed.kernels import report
from benchmarks.speed.kernels.runs import of_workloads
from benchmarks.speed.kernels.summary import summary
from benchmarks.speed.records import Record

PARTS: dict[str, Callable[[list[Record]], list[str]]] = {
    "summary": lambda records: [" ".join(summary(records))],
    "machine": lambda records: [report.machine_words(records)],
    "sums": lambda records: [
        *paragraph(report.RATIOS),
        *report.sums_table(of_workloads(records)),
    ],
    "limits": lambda records: [*report.limits_table(records), *report.rates_table(records)],
    "peers": lambda records: report.peers_lines(of_workloads(records)),
}


class KernelResults(Overview):
    """A part of the kernels' results."""

    required_arguments = 1

    def parts(self) -> Iterator[str]:
        for file in overview.SPEED.glob("kernels-*.json"):
            self.read(file)
        (part,) = self.arguments
        records = overview.speed_records("kernels")
        yield "\n".join(PARTS[part](records))
        if part == "sums":
            yield f"Every layer, with the spread of the rounds: {self.link(overview.SPEED)}."


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("kernel-results", KernelResults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
