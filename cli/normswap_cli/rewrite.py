"""How ``swap`` and ``fold`` end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from normswap_cli.console import complain, show, show_json
from normswap_cli.precision_options import Precision

if TYPE_CHECKING:
    from normswap.report.rewriting import Rewriting


def save_if_passed(report: Rewriting, output: Path, precision: Precision) -> Rewriting:
    """Converts and saves the model unless a gate was not met: then the file stays as it is."""
    from normswap import save

    if not report.passed:
        return report
    report = replace(report, conversion=precision.conversion(report.model, output))
    save(report.model, output)
    return report.saved_as(output)


def tell(report: Rewriting, output: Path, nothing: str, as_json: bool) -> int:
    """Prints the report and returns the exit status. ``nothing``: what to say if none was found."""
    from normswap.report.terminal import rewriting_view

    if as_json:
        show_json(report.to_json())
    else:
        show(rewriting_view(report))
    if report.passed:
        return 0
    if not report.found:
        why = nothing
    elif report.refuted is not None:
        why = report.refuted.words
    else:
        why = "a site was skipped" if report.unmet else "no norm can go for what --ensure asks"
    complain(f"{report.source.name}: {why}; {output} was not written")
    return 1
