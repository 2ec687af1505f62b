"""The directives that show committed results in short: a table, what it says, and a figure.

Everything is made from the results files when the pages are built.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from committed_results import page_name
from docutils import nodes
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from themed_figures import themed

from benchmarks import gains, overview, picture, processors
from benchmarks.cifar import overview as cifar
from benchmarks.cifar.by_length import length_table
from benchmarks.cifar.records import Folder, read_results
from benchmarks.cifar.report import figures, masks
from benchmarks.cifar.report import structured as cifar_structured
from benchmarks.cifar.report.order import orders
from benchmarks.cifar.report.paper import paper_of
from benchmarks.cifar.report.phases import phases
from benchmarks.cifar.report.results import Group
from benchmarks.common.environment import machines
from benchmarks.common.tables import table_of
from benchmarks.overhead.plots import cost_figure
from benchmarks.overhead.results import Results
from benchmarks.structured import report as neurons_and_heads
from benchmarks.structured.records import read_records

SPREAD = re.compile(r"(?<=[\d.]) (±|to) (?=[\d.])")


class Overview(SphinxDirective):
    """What is common to the directives: paragraphs, tables and figures, in Markdown.

    What is between the fences tells readers of the source, as on GitHub, where else it stands.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        # A number and its spread belong on one line, however narrow the column.
        text = "\n\n".join(self.parts()).replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
        text = SPREAD.sub("\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def parts(self) -> Iterator[str]:
        raise NotImplementedError

    def read(self, file: Path) -> None:
        """Have the page made again when the file changes."""
        self.env.note_dependency(str(file))

    def link(self, folder: Path) -> str:
        """A link to the complete report on a folder's results."""
        name = page_name(folder, Path(self.env.srcdir).parent / "benchmarks")
        return f"[complete report](reports/{name}.md)"


class CifarOverview(Overview):
    """Every protocol of every folder, below a heading each.

    Sections are put where the page's own are, which is after what has no heading: the page has to
    end with the directive, and all that it says is below a heading.
    """

    def parts(self) -> Iterator[str]:
        notes = cifar.COLUMNS
        first = {group.protocol["label"] for group in cifar.headline()}
        if all(group.protocol["reduced"] for group in cifar.headline()):
            notes += " **No run by a full protocol is among the committed results yet.**"
        found = [(folder, group) for folder in cifar.folders() for group in cifar.groups(folder)]
        for folder in cifar.folders():
            self.read(folder / cifar.FILE)
        for folder, group in sorted(found, key=lambda one: one[1].protocol["label"] not in first):
            is_first = group.protocol["label"] in first
            yield from self.of_group(folder, group, notes, "" if is_first else "Appendix: ")
            notes = ""

    def of_group(self, folder: Path, group: Group, columns: str, before: str) -> Iterator[str]:
        label, about = group.protocol["label"], group.protocol["description"]
        network = ", ".join(about.split(", ")[:2])
        origin = "" if folder.name == group.protocol["name"] else f", in `{folder.name}`"
        yield f"## {before}{network}: {label}{origin}"
        yield cifar.protocol(group)
        yield "\n".join(cifar.accuracy_table(group))
        yield columns
        sentences = cifar.order_sentences(group, cifar.main_variants(group))
        yield "\n".join(f"- {sentence}" for sentence in sentences)
        found = list(phases(group, cifar.main_variants(group)))
        if found:
            yield "\n".join(f"- {one.words}" for one in found)
        if len(group.variants) > FEW:
            yield themed(lambda: figures.by_method(group), f"{label}: accuracy by method")
        yield from self.beside_the_paper(group)
        yield "\n".join(masks.projection(group))
        yield f"The {self.link(folder)} has all differences, every seed, costs and versions."

    @staticmethod
    def beside_the_paper(group: Group) -> Iterator[str]:
        """Where a reduced protocol has the methods, and where the paper has them."""
        for order in orders(group, paper_of(group)):
            if len(order.rows) > FEW:
                yield f"The methods' order beside the paper's, at density {order.density:g}:"
                yield "\n".join(order.table())
                yield "\n".join(order.words())


#: A figure of so few methods says no more than their table.
FEW = 4


class TrainingLength(Overview):
    """How far the methods are ahead of Static after short, longer and published training."""

    def parts(self) -> Iterator[str]:
        for folder in cifar.folders():
            self.read(folder / cifar.FILE)
        yield "\n".join(length_table())
        yield (
            "Differences in points of test accuracy, ERK at density 0.1, paired by seed; the "
            "number of seeds is in brackets. The published training has 250 epochs."
        )


class MeasuredMethods(Overview):
    """What was measured of some methods, of all where none is named.

    The argument is the methods' names, as reports have them or as `--methods` takes them, with
    commas between.
    """

    optional_arguments = 1
    final_argument_whitespace = True

    def parts(self) -> Iterator[str]:
        for folder in cifar.folders():
            self.read(folder / cifar.FILE)
        named = [name.strip() for name in self.arguments[0].split(",")] if self.arguments else []
        names = named or cifar.known_methods()
        found = cifar.groups_with(names)
        for group in found:
            shown = [one for one in group.variants if cifar.is_named(one.method, names)]
            yield cifar.protocol(group)
            yield "\n".join(cifar.accuracy_table(group, shown))
        if found:
            yield "[What the columns mean, and all figures](/results/reproduction.md)."
        else:
            yield "This method has not been trained by a preset of the CIFAR benchmark."


class StructuredAccuracy(Overview):
    """Structured methods beside single weights, with times, of every protocol that has any."""

    def parts(self) -> Iterator[str]:
        found = False
        for folder in cifar.folders():
            timings = Folder(folder).timings
            self.read(folder / cifar.FILE)
            self.read(timings)
            for group in cifar.groups(folder):
                if cifar_structured.rows_of(group):
                    found = True
                    machines = cifar_structured.times_of(group, read_results(timings))
                    yield from self.of_group(group, machines[0] if machines else None)
                    yield f"Everything else is in the {self.link(folder)}."
        if not found:
            yield "*No run of a structured method is among the committed results.*"

    def of_group(self, group: Group, times: cifar_structured.Times | None) -> Iterator[str]:
        paper = None if group.protocol["reduced"] else paper_of(group)
        yield cifar.protocol(group)
        yield "\n".join(cifar_structured.structured_table(group, paper, times))
        yield "\n".join(cifar_structured.notes(paper, times))
        if times is not None:
            yield themed(
                lambda: figures.against_time(group, times),
                f"{group.protocol['label']}: accuracy against measured time",
            )


class OverheadOverview(Overview):
    """The wrapper beside the plain optimizer."""

    def parts(self) -> Iterator[str]:
        self.read(overview.OVERHEAD)
        results = Results(overview.OVERHEAD)
        for density in sorted({density for _, density in results.groups()}):
            yield f"At density {density:g}, on {overview.cost_machines(results, density)}:"
            yield "\n".join(overview.cost_table(results, density))
        report = self.link(overview.OVERHEAD.parent)
        yield f"{overview.COST_COLUMNS} Everything else is in the {report}."


#: Inches in which a figure with panels beside each other has letters of a legible size here.
COLUMN_WIDTH = 9.5


class OverheadFigure(Overview):
    """Time and memory beside other libraries."""

    def parts(self) -> Iterator[str]:
        self.read(overview.OVERHEAD)
        yield themed(self.figure, "Time of a step and bytes held, by contender")

    def figure(self) -> Figure | None:
        figure = cost_figure(Results(overview.OVERHEAD))
        if figure is not None:
            figure.set_figwidth(COLUMN_WIDTH)
        return figure


class SpeedOverview(Overview):
    """The table of one figure of the benchmark of speed, which is the argument."""

    required_arguments = 1

    def parts(self) -> Iterator[str]:
        for file in overview.SPEED.glob("*.json"):
            self.read(file)
        (figure,) = self.arguments
        records = overview.speed_records(figure)
        yield "\n".join(overview.speed_table(figure, records))
        made = machines(record["environment"] for record in records)
        yield f"Made on {made}. Everything else is in the {self.link(overview.SPEED)}."


class TransformerOverview(Overview):
    """Times of transformers without dropped neurons and heads, as multiples of the dense times."""

    def parts(self) -> Iterator[str]:
        for file in overview.STRUCTURED.glob("*.json"):
            self.read(file)
        records = read_records(overview.STRUCTURED, "time")
        yield "\n".join(table_of(neurons_and_heads.short_time_rows(records)))
        made = machines(record["environment"] for record in records)
        models = ", ".join(dict.fromkeys(f"`{record['model']}`" for record in records))
        report = self.link(overview.STRUCTURED)
        yield f"The models are {models}, on {made}. Everything else is in the {report}."


class TransformerAccuracy(Overview):
    """Accuracy of small transformers, with their times as multiples of the dense times."""

    def parts(self) -> Iterator[str]:
        for file in overview.STRUCTURED.glob("*.json"):
            self.read(file)
        records, inference = (
            read_records(overview.STRUCTURED, figure) for figure in ("accuracy", "inference")
        )
        yield "\n".join(table_of(neurons_and_heads.accuracy_rows(records, inference)))
        trained, timed = (
            machines(record["environment"] for record in one) for one in (records, inference)
        )
        report = self.link(overview.STRUCTURED)
        yield f"Trained on {trained}; inference on {timed}. Everything else is in the {report}."


class Gains(Overview):
    """What is gained and what it costs, in a line each, and the speed by kind of processor."""

    def parts(self) -> Iterator[str]:
        read_all(self)
        yield "\n".join(gains.lines(self.to_docs))
        yield "\n".join(processors.lines())
        yield processors.notes()

    @property
    def to_docs(self) -> str:
        """How to come from the page to the folder of the docs."""
        return "../" * self.env.docname.count("/")


class Conclusion(Overview):
    """What to conclude from a page of results, which is the argument."""

    required_arguments = 1

    def parts(self) -> Iterator[str]:
        read_all(self)
        (page,) = self.arguments
        yield gains.CONCLUSIONS[page]()


class Picture(Overview):
    """Accuracy against measured time of training, in the colours of the theme."""

    def parts(self) -> Iterator[str]:
        read_all(self)
        source = picture.best_source()
        yield themed(lambda: picture.draw(source), source.words, "drawing narrow")
        yield source.caption()


def read_all(page: Overview) -> None:
    """Have the page made again when any results change."""
    for folder in cifar.folders():
        page.read(folder / cifar.FILE)
        page.read(Folder(folder).timings)
    page.read(overview.OVERHEAD)
    for file in overview.SPEED.glob("*.json"):
        page.read(file)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("cifar-overview", CifarOverview)
    app.add_directive("training-length", TrainingLength)
    app.add_directive("measured-methods", MeasuredMethods)
    app.add_directive("structured-accuracy", StructuredAccuracy)
    app.add_directive("gains", Gains)
    app.add_directive("conclusion", Conclusion)
    app.add_directive("picture", Picture)
    app.add_directive("overhead-overview", OverheadOverview)
    app.add_directive("overhead-figure", OverheadFigure)
    app.add_directive("speed-overview", SpeedOverview)
    app.add_directive("transformer-overview", TransformerOverview)
    app.add_directive("transformer-accuracy", TransformerAccuracy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
