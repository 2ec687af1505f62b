"""The speed of models without their dropped channels and weights."""
