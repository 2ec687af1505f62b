"""Pruning at initialisation: masks that are decided once, before training starts."""

from sparseopt.pruning_at_init.balanced import balanced_batch
from sparseopt.pruning_at_init.grasp import grasp
from sparseopt.pruning_at_init.lottery import final_masks, shuffle_masks
from sparseopt.pruning_at_init.snip import snip
from sparseopt.pruning_at_init.synflow import synflow

__all__ = ["balanced_batch", "final_masks", "grasp", "shuffle_masks", "snip", "synflow"]
