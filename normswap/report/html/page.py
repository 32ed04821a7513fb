"""The page: its sections in their order, and the file that holds all of it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from normswap.io.atomic import atomic_path
from normswap.parity.report import ValidationReport
from normswap.report.html.agreement import agreement_section
from normswap.report.html.cost import cost_section
from normswap.report.html.depth import depth_section
from normswap.report.html.details import details_section
from normswap.report.html.errors import errors_section
from normswap.report.html.findings import findings_section
from normswap.report.html.key_figures import key_figures
from normswap.report.html.norms import norms_section
from normswap.report.html.parts import Section
from normswap.report.html.provenance import provenance_section
from normswap.report.html.skipped import skipped_section
from normswap.report.html.training import Training, training_section
from normswap.report.html.verdict import verdict
from normswap.timing.bench_report import BenchReport

_FOLDER = Path(__file__).parent
# Names come from model files. What controls a terminal or turns the direction of text around has
# no place in a page, and halves of surrogate pairs cannot be written at all.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def html_report(
    report: ValidationReport, bench: BenchReport | None = None, training: Training | None = None
) -> str:
    """The report as one HTML file: text, to be written as UTF-8.

    ``bench``: of the same two models, the reference first. ``training``: how the candidate was
    trained. The page loads nothing and runs
    nothing; its Content-Security-Policy allows its own style alone.
    """
    style = (_FOLDER / "style.css").read_text(encoding="utf-8").strip()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        report=report,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        verdict=verdict(report, bench),
        figures=key_figures(report, bench),
        sections=_sections(report, bench, training),
    )
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page)


def write_html(
    report: ValidationReport,
    path: Path,
    bench: BenchReport | None = None,
    training: Training | None = None,
) -> None:
    """Writes the page to ``path``, whole or not at all.

    Raises NormswapError where it cannot be written.
    """
    page = html_report(report, bench, training)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(
    report: ValidationReport, bench: BenchReport | None, training: Training | None
) -> list[Section]:
    exact = report.contract == "exact"
    return [
        findings_section(report),
        norms_section(report),
        depth_section(report),
        errors_section(report),
        *([] if exact else [agreement_section(report)]),
        *([] if training is None else [training_section(training, report)]),
        cost_section(bench),
        skipped_section(report),
        *([details_section(report)] if exact else []),
        provenance_section(report),
    ]
