"""Building and finding the binary: once for all processes, or one sentence why it is impossible."""

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build, cpu, library
from tests.speedup.kernels.dense import needs_compiler

needs_processor = pytest.mark.skipif(
    not cpu.supported_variants(build.VARIANTS), reason="no kernels for this processor"
)


def ask(**environment):
    """The output of a fresh process: whether kernels are available, and why not."""
    program = (
        "from sparseopt.speedup import kernels\n"
        "print(kernels.available())\n"
        "print(kernels.variant())\n"
        "print(kernels.why_not())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SPARSEOPT_KERNELS": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    available, variant, *reason = result.stdout.splitlines()
    assert len(reason) == 1, "one line"
    return available == "True", variant, reason[0]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """This process looks for the binary again, in an empty cache; it compiles quickly."""
    # These tests load the binary and call no kernel, so it need not be optimised.
    quickly = tuple("-O0" if flag == "-O3" else flag for flag in build._FLAGS)
    assert quickly != build._FLAGS
    monkeypatch.setattr(build, "_FLAGS", quickly)
    monkeypatch.setenv("SPARSEOPT_CACHE", str(tmp_path))
    monkeypatch.delenv("SPARSEOPT_KERNELS", raising=False)
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    library._state.cache_clear()
    yield monkeypatch
    library._state.cache_clear()


def test_kernels_are_available_or_a_reason_is_given():
    assert kernels.available() == (kernels.why_not() is None) == (kernels.variant() is not None)


@pytest.mark.parametrize("off", ["0", "off", "False"])
def test_environment_turns_kernels_off(off, fresh):
    fresh.setenv("SPARSEOPT_KERNELS", off)
    assert not kernels.available()
    assert kernels.why_not() == f"the environment says SPARSEOPT_KERNELS={off.lower()}"


@needs_processor
def test_calls_without_kernels_say_why(fresh):
    fresh.setenv("SPARSEOPT_KERNELS", "0")
    with pytest.raises(RuntimeError, match="SPARSEOPT_KERNELS=0"):
        library.library()


@pytest.mark.slow
@needs_processor
@needs_compiler
@pytest.mark.skipif(os.environ.get("SPARSEOPT_KERNELS") == "0", reason="kernels are turned off")
@needs_processor
def test_kernels_are_available_where_there_is_a_compiler():
    # Without this, an error in the source would skip every test of them.
    assert kernels.why_not() is None


@needs_compiler
def test_environment_chooses_an_instruction_set():
    assert ask(SPARSEOPT_KERNELS=(least := cpu.supported_variants(build.VARIANTS)[-1]))[:2] == (
        True,
        least,
    )


@needs_processor
def test_unknown_instruction_set_is_named(fresh):
    fresh.setenv("SPARSEOPT_KERNELS", "avx1024")
    assert "SPARSEOPT_KERNELS=avx1024" in kernels.why_not()


@needs_processor
def test_empty_path_and_an_empty_cache_leave_no_kernels(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {"PATH": str(empty), "SPARSEOPT_CACHE": str(tmp_path / "cache"), "CXX": ""}
    available, _, reason = ask(**environment)
    if not any(build.prebuilt_path(v).exists() for v in cpu.supported_variants(build.VARIANTS)):
        assert not available
        assert "no C++ compiler was found" in reason


@needs_processor
@pytest.mark.parametrize("command", ["g++ '-O2", '"'])
def test_compiler_that_is_not_a_command_is_named(fresh, command):
    fresh.setenv("CXX", command)
    assert not kernels.available()
    assert f"the compiler named by CXX ({command}) is not a command" in kernels.why_not()


@pytest.mark.parametrize("blank", ["", " "])
def test_blank_name_of_a_compiler_is_none(monkeypatch, blank):
    monkeypatch.delenv("CXX", raising=False)
    expected = build.find_compiler()
    monkeypatch.setenv("CXX", blank)
    assert build.find_compiler() == expected


@needs_processor
def test_user_without_a_home_trains_without_kernels(fresh, tmp_path):
    """As in a container whose user is not in the list of users."""
    for name in ("SPARSEOPT_CACHE", "XDG_CACHE_HOME"):
        fresh.delenv(name, raising=False)
    fresh.setattr("os.path.expanduser", lambda path: path)
    assert not kernels.available()
    assert "no home folder for the cache ~/.cache/sparseopt" in kernels.why_not()
    model = nn.Linear(128, 128)
    optimizer = SparseOptimizer(torch.optim.AdamW(model.parameters()), model, total_steps=1000)
    model(torch.randn(2, 128)).sum().backward()
    optimizer.step()
    assert not model.weight[~optimizer.masks["weight"]].any()


@needs_processor
@needs_compiler
def test_folder_of_the_cache_may_begin_with_the_home(fresh, tmp_path):
    fresh.setenv("HOME", str(tmp_path))
    fresh.setenv("SPARSEOPT_CACHE", "~/kernels")
    assert kernels.available()
    assert list((tmp_path / "kernels").glob("*.so"))


@needs_processor
def test_compiler_that_is_missing_is_named(fresh):
    fresh.setenv("CXX", "no-such-compiler")
    assert "CXX (no-such-compiler) was not found" in kernels.why_not()


@needs_processor
@needs_compiler
def test_failed_build_gives_its_reason_in_one_sentence(fresh, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    (sources / "vectors.h").write_text('#error "no such machine"')
    fresh.setattr(build, "SOURCES", sources)
    assert not kernels.available()
    assert "no such machine" in kernels.why_not()
    assert "\n" not in kernels.why_not()
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(
    len(cpu.supported_variants(build.VARIANTS)) < 2, reason="one instruction set here"
)
def test_compiler_that_is_older_than_the_processor_makes_the_next_best(fresh, tmp_path):
    best, *others = cpu.supported_variants(build.VARIANTS)
    unknown = [flag for flag in build._INSTRUCTIONS[best] if flag.startswith("-m")][-1]
    next_best = next(v for v in others if unknown not in build._INSTRUCTIONS[v])
    compiler = tmp_path / "old-compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *{unknown}*) exit 1;; esac\nexec {build.find_compiler()} "$@"\n'
    )
    compiler.chmod(0o755)
    fresh.setenv("CXX", str(compiler))
    assert (kernels.variant(), kernels.why_not()) == (next_best, None)


@needs_processor
@needs_compiler
def test_cache_that_cannot_be_written_is_given_as_the_reason(fresh, tmp_path):
    file = tmp_path / "file"
    file.touch()
    fresh.setenv("SPARSEOPT_CACHE", str(file / "folder"))
    assert "cache for compiled kernels cannot be written" in kernels.why_not()


@needs_processor
def test_file_that_is_no_library_is_given_as_the_reason(fresh):
    path = build.prebuilt_path(cpu.supported_variants(build.VARIANTS)[0])
    path.parent.mkdir()
    path.write_text("nothing")
    fresh.setenv("CXX", "no-such-compiler")
    assert "could not be loaded" in kernels.why_not()


@pytest.mark.slow
@needs_processor
@needs_compiler
def test_prebuilt_binary_needs_no_compiler(fresh, caplog):
    variant = cpu.supported_variants(build.VARIANTS)[0]
    build.compile_variant(variant, build.find_compiler(), build.prebuilt_path(variant))
    fresh.setenv("PATH", "")
    with caplog.at_level(logging.WARNING, logger="sparseopt"):
        assert kernels.available()
    assert not caplog.records


@pytest.mark.slow
@needs_processor
@needs_compiler
def test_first_use_compiles_once_and_says_so(fresh, caplog):
    with caplog.at_level(logging.WARNING, logger="sparseopt"), ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(build.compiled, ["avx2" if _x86() else "neon"] * 4))
    assert len(paths) == 1
    assert [r.message for r in caplog.records if "compiling the sparse kernels" in r.message]
    assert len(caplog.records) == 1


def test_other_machines_have_none(monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "riscv64")
    assert cpu.supported_variants(build.VARIANTS) == ()
    monkeypatch.setattr(cpu.sys, "platform", "win32")
    assert cpu.supported_variants(build.VARIANTS) == ()


WITH_BF16 = """\
processor\t: 0
vendor_id\t: {}
flags\t\t: avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16

processor\t: 1
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "flags\t: fpu avx2 fma f16c\n", ("avx2",)),
        ("x86_64", "flags\t: fpu sse4_2\n", ()),
        (
            "x86_64",
            "flags : avx2 fma f16c avx512f avx512bw avx512dq avx512vl\n",
            ("avx512", "avx2"),
        ),
        (
            "x86_64",
            WITH_BF16.format("AuthenticAMD"),
            ("avx512_bf16", "avx512_bf16_dots", "avx512", "avx2"),
        ),
        (
            "x86_64",
            WITH_BF16.format("GenuineIntel"),
            ("avx512_bf16_dots", "avx512_bf16", "avx512", "avx2"),
        ),
        ("aarch64", "processor : 0\nFeatures : fp asimd\n", ("neon",)),
        ("x86_64", "", ()),
    ],
)
def test_instruction_sets_follow_the_flags_of_the_processor(
    machine, cpuinfo, expected, monkeypatch, tmp_path
):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.supported_variants(build.VARIANTS) == expected


def _x86():
    return cpu.platform.machine() == "x86_64"
