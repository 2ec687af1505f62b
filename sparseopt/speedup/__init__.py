"""Sparsity into time: computing with what is live, and leaving out what is not."""
