"""Sparse weights in files: live values and compressed positions, on safetensors."""

from sparseopt.speedup.inference.files.loading import load_sparse
from sparseopt.speedup.inference.files.saving import save_sparse

__all__ = ["load_sparse", "save_sparse"]
