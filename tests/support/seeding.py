"""Seeding torch, thousands of times."""

import torch

HAS_ACCELERATOR = torch.cuda.is_available() or torch.backends.mps.is_available()


def seed_torch(seed: int) -> None:
    """Do what `torch.manual_seed` does, in microseconds on a machine without accelerators.

    There it would take a stack trace for every kind of accelerator, to seed it when it is used.
    """
    if HAS_ACCELERATOR:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
