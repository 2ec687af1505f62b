"""The data sets of the benchmarks, by name."""

from __future__ import annotations

DATASET_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn digits"}
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
