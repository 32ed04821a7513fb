"""The section on findings: what a reader must know."""

from __future__ import annotations

from normswap.parity.report import Finding, ValidationReport
from normswap.report.html.parts import Note, Section


def findings_section(report: ValidationReport) -> Section:
    """Fatal ones first."""
    ordered = sorted(report.findings, key=lambda finding: not finding.fatal)
    text = [] if ordered else ["There are none: nothing failed, and nothing needs a warning."]
    return Section("findings", "Findings", text, notes=[_note(finding) for finding in ordered])


def _note(finding: Finding) -> Note:
    where = " at ".join(part for part in (finding.probe, finding.output) if part)
    tone, word = ("bad", "failed") if finding.fatal else ("warn", "note")
    return Note(tone, f"{word}: {finding.kind.replace('_', ' ')}", finding.message, where)
