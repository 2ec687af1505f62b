"""Trains a model without its dropped channels, while the masks keep moving."""

from sparseopt.speedup.compacted_training.training import CompactedTraining

__all__ = ["CompactedTraining"]
