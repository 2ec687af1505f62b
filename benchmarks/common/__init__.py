"""What all benchmarks share: files, versions and hardware, tables and figures."""
