"""The search for the best (alpha, delta_t), with Optuna; every trial is made of ordinary runs."""

from benchmarks.cifar.tuning.search import SearchError, Tuning, tune
from benchmarks.cifar.tuning.storage import Storage

__all__ = ["SearchError", "Storage", "Tuning", "tune"]
