"""Files that pytest must not import for doctests: frameworks take seconds, or are absent."""

collect_ignore = [
    "accelerate_worker.py",
    "huggingface_worker.py",
    "lightning_fits.py",
    "lightning_worker.py",
]
