"""A pytest plugin: what the tests with a compatibility marker prove, for the page in the docs."""

import datetime
import importlib.metadata
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from benchmarks.common.environment import describe_environment
from benchmarks.common.files import write_atomic
from tests.support.readable_json import one_line_where_it_fits, plain
from tests.support.sightings import Sighting, sightings_by_class, watching

OPTION: Final = "--compatibility-report"
ROOT: Final = Path(__file__).parents[2]
COMMITTED: Final = ROOT / "docs" / "compatibility.json"
# With "=", because pytest looks for conftest.py beside every argument that is a file before it
# knows which options there are.
COMMAND: Final = f"python -m pytest {OPTION}={COMMITTED.relative_to(ROOT).as_posix()}"

#: The parts of the page in their order, and the packages beside torch that each is about.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "Optimizers of torch": (),
    "Third-party optimizers": ("pytorch_optimizer",),
    "LR schedulers, SWA, EMA": (),
    "AMP": (),
    "Clipping, zero_grad, accumulation": (),
    "Closures and L-BFGS": (),
    "Groups, hooks, copies, deletion": (),
    "torch.compile": (),
    "DistributedDataParallel": (),
    "FSDP2": (),
    "Elastic restart": (),
    "Accelerate": ("accelerate",),
    "Lightning": ("lightning",),
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "Saving and exporting models": ("safetensors",),
    "Resume in a fresh process": (),
    "Kill and recover": (),
    "Bad input": (),
    "Invariants": ("hypothesis",),
}

Record = dict[str, Any]
Pairs = set[tuple[str, str]]

#: By test file, the (part, test function) pairs in it; files of which only a part was collected
#: are left out.
COLLECTED: Final = pytest.StashKey[dict[str, Pairs]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        OPTION,
        type=Path,
        metavar="FILE",
        help="write what the tests with a compatibility marker prove to FILE, as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption(OPTION)
    if file is None:
        return
    if config.getoption("collectonly"):
        raise pytest.UsageError(f"{OPTION} has nothing to write with --collect-only.")
    if config.getoption("numprocesses", None):
        raise pytest.UsageError(f"{OPTION} sees the tests of one process only: leave out -n.")
    config.pluginmanager.register(CompatibilityReport(config.invocation_params.dir / file))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collected: dict[str, Pairs] = {}
    in_part = {
        config.invocation_params.dir / argument.partition("::")[0]
        for argument in config.args
        if "::" in argument
    }
    for item in items:
        parts = parts_of(item)
        if item.path not in in_part and not config.getoption("lf", False):
            file, function = place_of(item)
            collected.setdefault(file, set()).update((part, function) for part in parts)
    config.stash[COLLECTED] = collected


def parts_of(item: pytest.Item) -> list[str]:
    """The parts for which the test proves something, in the order of the page.

    Raises:
        pytest.UsageError: If a marker names no part.
    """
    named = set()
    for marker in item.iter_markers("compatibility"):
        if marker.kwargs or len(marker.args) != 1 or marker.args[0] not in PARTS:
            given = ", ".join(map(repr, [*marker.args, *marker.kwargs.values()]))
            raise pytest.UsageError(
                f"{item.nodeid}: compatibility({given}) must name one of the parts "
                f"{', '.join(map(repr, PARTS))}."
            )
        named.add(marker.args[0])
    return [part for part in PARTS if part in named]


def place_of(item: pytest.Item) -> tuple[str, str]:
    """The test's file, relative to the root, and the name of its function."""
    file, _, name = item.nodeid.partition("::")
    return file, name.partition("[")[0]


class CompatibilityReport:
    """Gathers the outcome of every marked test of a session, and writes them when it ends.

    Nothing is written if the session is interrupted: the last report stays.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tests: dict[tuple[str, str], Record] = {}
        self._cases: dict[str, Record] = {}
        self._seen: dict[tuple[str, str], set[Sighting]] = {}
        self._deselected = 0
        self._files_left_out: list[Record] = []
        self._open = ExitStack()
        self._watched: set[Sighting] = set()
        self._written = False

    def pytest_sessionstart(self) -> None:
        self._watched = self._open.enter_context(watching())

    def pytest_unconfigure(self) -> None:
        self._open.close()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._files_left_out.append({"file": report.nodeid, "reason": reason_of(report)})

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._deselected += sum(bool(parts_of(item)) for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if parts_of(item):
                case = case_of(item)
                test = self._tests.setdefault(place_of(item), description_of(item))
                test["cases"].append(case)
                self._cases[item.nodeid] = case

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._watched.clear()
        outcome = yield
        if self._cases.get(item.nodeid, {}).get("outcome") == "passed":
            self._seen.setdefault(place_of(item), set()).update(self._watched)
        return outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self._cases.get(report.nodeid)
        if case is None or case["outcome"] == "failed":
            return
        if report.failed:
            case["outcome"] = "failed"
        elif report.skipped:
            case.update(outcome="skipped", reason=reason_of(report))
        elif report.when == "call":
            case["outcome"] = "passed"

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            return
        write_atomic(self._file, (one_line_where_it_fits(self._record()) + "\n").encode())
        self._written = True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._written:
            text = f"compatibility of {len(self._tests)} tests written to {self._file}"
        else:
            text = f"nothing written to {self._file}, as the session did not run to its end"
        terminalreporter.write_sep("-", text)

    def _record(self) -> Record:
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": COMMAND,
            "environment": environment(),
            "parts": [{"part": part, "packages": names} for part, names in PARTS.items()],
            "left_out": {"deselected": self._deselected, "files": self._files_left_out},
            "tests": [
                {
                    **{key: value for key, value in test.items() if key != "cases"},
                    **{
                        outcome: sum(case["outcome"] == outcome for case in test["cases"])
                        for outcome in ("passed", "skipped", "failed", "not run")
                    },
                    "wrapped": sightings_by_class(self._seen.get(place, ())),
                    "cases": test["cases"],
                }
                for place, test in self._tests.items()
            ],
        }


def description_of(item: pytest.Item) -> Record:
    """What does not depend on the case: the parts, the sentence and its explanation."""
    file, function = place_of(item)
    docstring = " ".join((item.obj.__doc__ or "").strip().partition("\n\n")[0].split())
    return {
        "parts": parts_of(item),
        "file": file,
        "test": function,
        "sentence": function.rpartition("::")[2].removeprefix("test_").replace("_", " "),
        "explanation": docstring or None,
        "cases": [],
    }


def case_of(item: pytest.Item) -> Record:
    """One case before it ran: its id, and of its parameters those that JSON can hold."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return {"id": "", "outcome": "not run", "params": {}}
    params = {}
    for name, value in callspec.params.items():
        try:
            params[name] = plain(value)
        except TypeError:
            continue
    return {"id": callspec.id, "outcome": "not run", "params": params}


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it was skipped, or is expected to fail; without the place, which has no meaning here."""
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def environment() -> Record:
    """Versions and hardware; no names of folders or hosts."""
    about = describe_environment(torch.device("cpu"))
    devices = [about.pop("device")]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    packages = sorted({name for names in PARTS.values() for name in names})
    return {**about, "devices": devices, "packages": {name: version(name) for name in packages}}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
