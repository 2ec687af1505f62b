"""Running a module, a script or a function in a process of its own.

The processes are forked from a server that has imported torch already, which takes seconds. The
server computes nothing, so its processes are as fresh as those that import torch themselves.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 600


def forkserver() -> Any:
    """A context whose fresh processes start in milliseconds, because torch is imported already.

    Where processes cannot be forked, they import torch themselves.
    """
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Every optimizer of torch imports the compiler when it is made.
    context.set_forkserver_preload(["torch", "torch._dynamo", "benchmarks.cifar.cli"])
    return context


class Process:
    """A module's function that runs in a process of its own.

    Args:
        function: what it runs.
        args: the arguments of the function, which can be pickled.
        folder: where it runs.
        env: variables of its environment, besides those of this process.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *args: Any,
        folder: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ):
        # A file takes all output before it is read; a pipe is soon full.
        self._temporary = TemporaryDirectory()
        self._output = Path(self._temporary.name) / "output"
        variables = {**os.environ, **(env or {})}
        # Not a daemon: it may start processes of its own.
        self._process = forkserver().Process(
            target=_run, args=(self._output, folder, variables, function, *args)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal that ended it, or None while it runs."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        self._process.kill()

    def communicate(self, timeout: float = LIMIT_S) -> str:
        """Wait for its end, at most this many seconds; return all that it printed."""
        self._process.join(timeout)
        in_time = self.returncode is not None
        self._process.kill()
        self._process.join()
        output = self._output.read_text(errors="replace") if self._output.exists() else ""
        self._temporary.cleanup()
        assert in_time, f"ran for more than {timeout} s: {output}"
        return output


def start(module: str, *args: str, env: Mapping[str, str] | None = None) -> Process:
    """Start the equivalent of `python -m module args` from the root of the project.

    Trainers that restore the model, make the optimizer and then restore the optimizer are told that
    the model was sparse before; they go on with the checkpoint's masks.
    """
    return Process(_run_module, module, args, env={"OMP_NUM_THREADS": "1", **(env or {})})


def start_script(script: Path, *args: str, folder: Path = ROOT) -> Process:
    """Start the equivalent of `python script args` from a folder."""
    return Process(_run_script, script, args, folder=folder)


def finish(processes: Sequence[Process]) -> None:
    """Wait for all of them; the output of one that failed is the error's message."""
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


def free_port() -> str:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _run(
    output: Path,
    folder: Path,
    env: dict[str, str],
    function: Callable[..., None],
    *args: Any,
) -> None:
    # Also of what is not Python, and of processes that it starts.
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    function(*args)


def _run_script(script: Path, args: Sequence[str]) -> None:
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def _run_module(module: str, args: Sequence[str]) -> None:
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "the model was sparse before", UserWarning)
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
