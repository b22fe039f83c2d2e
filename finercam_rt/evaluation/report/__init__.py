"""report.html: one page with everything on it, which needs nothing but a browser."""

from finercam_rt.evaluation.report.page import REPORT as REPORT
from finercam_rt.evaluation.report.page import write_report as write_report

__all__ = ["REPORT", "write_report"]
