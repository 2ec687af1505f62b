"""Helpers that are not about sparsity: validation, errors, random numbers, hooks, probes."""
