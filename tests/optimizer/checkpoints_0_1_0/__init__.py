"""Checkpoints that sparseopt 0.1.0 wrote, and how its training continued after them."""
