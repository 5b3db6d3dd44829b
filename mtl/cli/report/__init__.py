"""The page that a run leaves behind."""

from mtl.cli.report.page import REPORT, write_report
from mtl.cli.report.shown import answers_of, shown_methods

__all__ = ["REPORT", "answers_of", "shown_methods", "write_report"]
