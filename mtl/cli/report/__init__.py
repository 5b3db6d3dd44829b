"""The page that a run leaves behind."""

from mtl.cli.report.page import REPORT, write_report
from mtl.cli.report.shown import shown_methods

__all__ = ["REPORT", "shown_methods", "write_report"]
