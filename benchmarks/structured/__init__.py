"""What removed channels give in time, measured: run it with ``benchmarks/structured/run.py``."""
