"""The traced graph of a model, and the indices of its tensors that belong together."""
