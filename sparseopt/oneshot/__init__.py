"""One-shot masks: which weights to keep, decided once, before training starts."""

from sparseopt.oneshot.balanced import balanced_batch
from sparseopt.oneshot.grasp import grasp
from sparseopt.oneshot.snip import snip
from sparseopt.oneshot.synflow import synflow

__all__ = ["balanced_batch", "grasp", "snip", "synflow"]
