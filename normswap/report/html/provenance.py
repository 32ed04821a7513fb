"""The section on what made the report."""

from __future__ import annotations

from normswap.parity.report import ModelSummary, ValidationReport
from normswap.report.html.formats import file_size
from normswap.report.html.parts import Section, Table

_TITLE = "Where this comes from"
_FORMATS = {"fx": "torch", "onnx": "ONNX"}


def provenance_section(report: ValidationReport) -> Section:
    tables = [_models(report)]
    text = []
    made = report.provenance
    command = None
    if made is None:
        text.append("It is not recorded what made this report.")
    else:
        threads = f"{made.threads} thread{'s' * (made.threads != 1)}"
        text.append(f"Made on {made.machine} with {threads}.")
        rows = [[name, version] for name, version in made.versions.items()]
        if rows:
            tables.append(Table("Versions", ["library", "version"], rows, names=["version"]))
        command = made.command
        text.append(
            "This command makes it again:"
            if command
            else "It was made from Python, not by a command."
        )
    return Section("provenance", _TITLE, text, tables=tables, command=command)


def _models(report: ValidationReport) -> Table:
    head = ["", "reference", "candidate"]
    models = [_model(report.reference), _model(report.candidate)]
    rows = [[key, *(model[key] for model in models)] for key in models[0]]
    return Table("The two models", head, rows, names=["reference", "candidate"])


def _model(model: ModelSummary) -> dict[str, str]:
    return {
        "name": model.name,
        "file": model.path or "in memory",
        "format": _FORMATS.get(model.kind, model.kind),
        "size": file_size(model.size_bytes),
        "sha256": model.sha256 or "-",
        "ran in": model.runtime or "-",
    }
