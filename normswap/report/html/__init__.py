"""A validation as one HTML file that needs nothing else: no script, no font, no network."""

from normswap.report.html.page import html_report, write_html
from normswap.report.html.training import Training

__all__ = ["Training", "html_report", "write_html"]
