"""Helpers that know nothing of sparsity: validation, errors, random numbers, hooks, probes."""
