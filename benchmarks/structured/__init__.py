"""Sparsity in whole neurons and heads: its cost in accuracy, and its gain in time."""
