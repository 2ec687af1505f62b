"""The directives that show the results of the kernels; the argument names the part to show."""

from collections.abc import Callable, Iterator

from overviews import Overview
from sphinx.application import Sphinx

from benchmarks import overview
from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed import condensed
from benchmarks.speed.kernels import report
from benchmarks.speed.kernels.runs import of_workloads
from benchmarks.speed.kernels.summary import summary
from benchmarks.speed.records import Record
from benchmarks.speed.steps import report as steps

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


STEP_PARTS: dict[str, Callable[[list[Record]], list[str]]] = {
    "table": lambda records: [
        *paragraph(f"{steps.INTRODUCTION} {steps.machine_words(records)}"),
        *steps.steps_table(records),
    ],
    "peers": steps.peers_table,
}


CONDENSED_PARTS: dict[str, Callable[[list[Record]], list[str]]] = {
    "table": lambda records: [
        *condensed.made_with(records, "network", "batch", "init", "density"),
        *table_of(condensed.rows(records)),
    ],
    "server": lambda records: table_of(condensed.served(records)),
    "profile": lambda records: [
        *paragraph(condensed.PROFILES),
        *table_of(condensed.profiles(records)),
    ],
}


class KernelResults(Overview):
    """A part of the kernels' results."""

    required_arguments = 1
    figure = "kernels"
    shown = PARTS
    #: The part after which there is a link to the report, and its words.
    link_after = "sums"
    link_words = "Every layer, with the spread of the rounds"

    def parts(self) -> Iterator[str]:
        for file in overview.SPEED.glob(f"{self.figure}-*.json"):
            self.read(file)
        (part,) = self.arguments
        records = overview.speed_records(self.figure)
        yield "\n".join(self.shown[part](records))
        if part == self.link_after:
            yield f"{self.link_words}: {self.link(overview.SPEED)}."


class StepResults(KernelResults):
    """A part of the results of whole training steps."""

    figure = "steps"
    shown = STEP_PARTS
    link_after = "table"
    link_words = "What was measured and chosen layer by layer"


class CondensedResults(KernelResults):
    """A part of the results of inference on live weights."""

    figure = "condensed"
    shown = CONDENSED_PARTS
    link_after = "table"
    link_words = "Every dense implementation, and what was chosen layer by layer"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("kernel-results", KernelResults)
    app.add_directive("step-results", StepResults)
    app.add_directive("condensed-results", CondensedResults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
