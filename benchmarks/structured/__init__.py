"""Whole neurons and heads: what they cost in accuracy, and give in time."""
