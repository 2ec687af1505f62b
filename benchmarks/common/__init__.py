"""Code that all benchmarks share: files, versions and hardware, tables and figures."""
