"""The cost of the wrapper beside the plain optimizer: run ``benchmarks/overhead/run.py``."""
