"""Sparsity into time: what makes sparse models faster, and how that is measured."""
