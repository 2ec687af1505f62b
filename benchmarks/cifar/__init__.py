"""The reproduction of the report's CIFAR-10 results: run it with ``benchmarks/cifar/run.py``."""
