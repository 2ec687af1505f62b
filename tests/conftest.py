"""Fixtures that all tests share."""

import os

# Set before torch starts its threads: a waiting thread that spins slows every small op of a
# machine that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Inductor would start two processes beside each test process that compiles, and each of them
# imports torch, which takes longer than what they compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.seeding import seed_torch

torch.set_num_threads(1)

settings.register_profile(
    "sparseopt",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("sparseopt")


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this machine has."""
    return request.param


@pytest.fixture(params=["live", "masked"])
def state(request: pytest.FixtureRequest) -> str:
    """Both forms of the optimizer's state."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random numbers."""
    seed_torch(0)
