"""The programs start without an optional package, and name the missing package."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WITHOUT = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["cifar", "overhead", "speed"])
def test_missing_package_is_named_with_what_installs_it(name, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(BENCHMARKS / name / "run.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert "torch" in line
    assert line.endswith('install the packages of the benchmarks by pip install -e ".[bench]"')
