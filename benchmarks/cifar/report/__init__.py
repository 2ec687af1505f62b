"""The report: tables and figures, from the results alone."""

from benchmarks.cifar.report.writing import write_report

__all__ = ["write_report"]
