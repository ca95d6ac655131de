"""The report of a run: curves, confusion matrix, memory, time by layer and what was kept, on one page."""

from edgepeft.report.run_report import RunReport, report

__all__ = ["RunReport", "report"]
