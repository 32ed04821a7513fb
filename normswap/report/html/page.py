"""The page on a comparison: its sections in their order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from normswap.parity.report import ValidationReport
from normswap.report.html.agreement import agreement_section
from normswap.report.html.answers import answers_section
from normswap.report.html.cost import cost_section
from normswap.report.html.depth import depth_section
from normswap.report.html.document import Page, page_text, provenance_section, write_page
from normswap.report.html.norms import norms_section, skipped_section
from normswap.report.html.output_errors import details_section, errors_section
from normswap.report.html.parts import Section, Table, file_size
from normswap.report.html.ranges import ranges_section
from normswap.report.html.training import Training, training_section
from normswap.report.html.verdict import findings_section, key_figures, verdict
from normswap.timing.bench_report import BenchReport

if TYPE_CHECKING:
    from normswap.train.distill import DistillResult

_FORMATS = {"fx": "torch", "onnx": "ONNX"}


def html_report(
    report: ValidationReport, bench: BenchReport | None = None, training: Training | None = None
) -> str:
    """The report as one HTML file: text, to be written as UTF-8.

    ``bench``: of the same two models, the reference first. ``training``: how the candidate was
    trained.
    """
    return page_text(_page(report, bench, training))


def write_html(
    report: ValidationReport,
    path: Path,
    bench: BenchReport | None = None,
    training: Training | None = None,
) -> None:
    """Writes the page to ``path``, whole or not at all.

    Raises NormswapError where it cannot be written.
    """
    write_page(_page(report, bench, training), path)


def _page(report: ValidationReport, bench: BenchReport | None, training: Training | None) -> Page:
    met = "passed" if report.contract == "exact" else "measured"
    return Page(
        [report.candidate.name, report.reference.name],
        verdict(report, bench),
        f"{report.contract} contract: {met if report.passed else 'failed'}",
        key_figures(report, bench),
        _sections(report, bench, training),
    )


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
        *([ranges_section(report.ranges)] if report.ranges else []),
        errors_section(report),
        *([] if exact else [agreement_section(report)]),
        *([] if training is None else [training_section(training, report)]),
        cost_section(bench),
        skipped_section(report),
        *([details_section(report)] if exact else []),
        provenance_section(report.provenance, [_models(report)]),
    ]


def _models(report: ValidationReport) -> Table:
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
    return Table("The two models", head, rows, names=["reference", "candidate"])
