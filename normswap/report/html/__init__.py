"""A validation as one HTML file that needs nothing else: no script, no font, no network."""

from normswap.report.html.page import html_report, write_html

__all__ = ["html_report", "write_html"]
