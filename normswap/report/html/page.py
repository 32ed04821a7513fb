"""The page: its sections in their order, and the file that holds all of it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from normswap.errors import escaped
from normswap.io.atomic import atomic_path
from normswap.parity.report import ValidationReport
from normswap.report.html.agreement import agreement_section
from normswap.report.html.answers import answers_section
from normswap.report.html.cost import cost_section
from normswap.report.html.depth import depth_section
from normswap.report.html.norms import norms_section, skipped_section
from normswap.report.html.output_errors import details_section, errors_section
from normswap.report.html.parts import Section, Table, counted, file_size
from normswap.report.html.training import Training, training_section
from normswap.report.html.verdict import findings_section, key_figures, verdict
from normswap.timing.bench_report import BenchReport

if TYPE_CHECKING:
    from normswap.train.distill import DistillResult

_FOLDER = Path(__file__).parent
_FORMATS = {"fx": "torch", "onnx": "ONNX"}
# Names come from model files. Characters that control a terminal or the direction of text have no
# place in a page, and halves of surrogate pairs cannot be written at all: their escapes are shown.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def html_report(
    report: ValidationReport, bench: BenchReport | None = None, training: Training | None = None
) -> str:
    """The report as one HTML file: text, to be written as UTF-8.

    ``bench``: of the same two models, the reference first. ``training``: how the candidate was
    trained. The page loads nothing and runs nothing; its Content-Security-Policy allows nothing but
    its own style, and where it has pictures of samples, images inside of it.
    """
    style = (_FOLDER / "style.css").read_text(encoding="utf-8").strip()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = _sections(report, bench, training)
    page = environment.get_template("page.html.j2").render(
        report=report,
        pictured=any(section.samples for section in sections),
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        verdict=verdict(report, bench),
        figures=key_figures(report, bench),
        sections=sections,
    )
    return _UNPRINTABLE.sub(lambda found: escaped(found[0]), page)


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


def write_distillation(result: DistillResult, path: Path) -> None:
    """Writes the trained student against the teacher as a page, with the loss of each step."""
    facts = {name.replace("_", " "): str(value) for name, value in vars(result.options).items()}
    facts |= {"BatchNorms": str(result.trained), "statistics": result.statistics}
    write_html(result.after, path, training=Training(result.losses, result.before, facts))


def _sections(
    report: ValidationReport, bench: BenchReport | None, training: Training | None
) -> list[Section]:
    exact = report.contract == "exact"
    return [
        findings_section(report),
        *([] if report.answers is None else [answers_section(report.answers)]),
        norms_section(report),
        depth_section(report),
        errors_section(report),
        *([] if exact else [agreement_section(report)]),
        *([] if training is None else [training_section(training, report)]),
        cost_section(bench),
        skipped_section(report),
        *([details_section(report)] if exact else []),
        _provenance_section(report),
    ]


def _provenance_section(report: ValidationReport) -> Section:
    """The two models, and what made the report."""
    columns = [
        {
            "name": model.name,
            "file": model.path or "in memory",
            "format": _FORMATS.get(model.kind, model.kind),
            "size": file_size(model.size_bytes),
            "sha256": model.sha256 or "-",
            "ran in": model.runtime or "-",
        }
        for model in (report.reference, report.candidate)
    ]
    rows = [[key, *(column[key] for column in columns)] for key in columns[0]]
    head = ["", "reference", "candidate"]
    tables = [Table("The two models", head, rows, names=["reference", "candidate"])]
    title = "Where this comes from"
    made = report.provenance
    if made is None:
        text = ["It is not recorded what made this report."]
        return Section("provenance", title, text, tables=tables)
    text = [f"Made on {made.machine} with {counted(made.threads, 'thread')}."]
    python = "It was made from Python, not by a command."
    text.append("This command makes it again:" if made.command else python)
    rows = [[name, version] for name, version in made.versions.items()]
    if rows:
        tables.append(Table("Versions", ["library", "version"], rows, names=["version"]))
    return Section("provenance", title, text, tables=tables, command=made.command)
