"""The report: tables and figures, made from the results only."""

from benchmarks.cifar.report.writing import write_report

__all__ = ["write_report"]
