"""What pytest must not import in search of doctests: frameworks take seconds, and may be absent."""

collect_ignore = ["accelerate_worker.py", "huggingface_worker.py", "lightning_worker.py"]
