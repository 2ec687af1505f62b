"""Wall time of trained networks, dense ones in turn with them."""

from benchmarks.cifar.timing.session import Conditions, time_jobs

__all__ = ["Conditions", "time_jobs"]
