"""How much faster models become without their dropped channels and weights."""
