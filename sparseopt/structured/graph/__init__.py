"""The traced graph of a model, and which indices of its tensors belong together."""
