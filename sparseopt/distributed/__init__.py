"""Training on several processes: ranks that agree, and weights that are sharded (DTensor)."""
