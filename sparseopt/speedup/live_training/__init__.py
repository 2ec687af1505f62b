"""Training on live weights only: the same loop, with faster computation in the model's modules."""

from sparseopt.speedup.live_training.speed_up import SpeedUp, speed_up

__all__ = ["SpeedUp", "speed_up"]
