"""What the wrapper costs beside the plain optimizer: run it with ``benchmarks/overhead/run.py``."""
