"""The section on what was skipped, and why."""

from __future__ import annotations

from collections.abc import Iterable

from normswap.model import Step
from normswap.parity.report import ModelSummary, ValidationReport
from normswap.report.html.formats import counted
from normswap.report.html.names import gathered
from normswap.report.html.parts import Note, Section, Table

_TITLE = "What was skipped, and why"


def skipped_section(report: ValidationReport) -> Section:
    tables = []
    if report.unmatched:
        caption = "Norms of the reference that were not compared"
        tables.append(_by_reason(caption, report.unmatched))
    notes = []
    for model, word in ((report.reference, "reference"), (report.candidate, "candidate")):
        for step in model.history:
            notes += [Note("plain", f"{word}, {step.name}", note) for note in step.notes]
            if step.skipped:
                caption = f"Sites that {step.name} left alone ({word})"
                tables.append(_by_reason(caption, step.skipped))
    text = [*_history(report.candidate, "candidate"), *_history(report.reference, "reference")]
    if not tables:
        text.append("No norm was skipped.")
    return Section("skipped", _TITLE, text, notes=notes, tables=tables)


def _history(model: ModelSummary, word: str) -> list[str]:
    if model.history:
        return [f"The {word} went through: {', '.join(map(_told, model.history))}."]
    if word == "candidate":
        return ["The candidate does not say that normswap rewrote it."]
    return []


def _told(step: Step) -> str:
    skipped = f" and {len(step.skipped)} skipped" if step.skipped else ""
    return f"{step.name} ({counted(step.done, 'site')} done{skipped})"


def _by_reason(caption: str, skipped: Iterable[tuple[str, str]]) -> Table:
    """One row for a reason."""
    reasons: dict[str, list[str]] = {}
    for site, reason in skipped:
        reasons.setdefault(reason, []).append(site)
    rows = [
        [reason, str(len(sites)), ", ".join(gathered(sites))] for reason, sites in reasons.items()
    ]
    return Table(caption, ["reason", "count", "sites"], rows, numeric=["count"], names=["sites"])
