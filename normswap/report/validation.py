"""A validation as rich renderables: the verdict, a table, the findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normswap.parity.report import (
    ApproximateOutput,
    Bisection,
    ExactOutput,
    Finding,
    SiteComparison,
    ValidationReport,
)
from normswap.report.terminal import table

_PLACES = 3  # of norms that could not be compared

# Figures of another function are not passed or failed: a reader decides what is close enough.
_VERDICTS = {"exact": "passed", "approximate": "measured"}


def validation_view(report: ValidationReport) -> RenderableType:
    """The verdict first, then the figures, then what a reader must know."""
    fatal = [finding for finding in report.findings if finding.fatal]
    names = f"{report.candidate.name} against {report.reference.name}"
    verdict = _VERDICTS[report.contract] if report.passed else "FAILED"
    parts: list[RenderableType] = [
        Text(
            f"{report.contract} contract {verdict}: {names}",
            "bold green" if report.passed else "bold red",
        )
    ]
    exact = [output for output in report.outputs if isinstance(output, ExactOutput)]
    approximate = [output for output in report.outputs if isinstance(output, ApproximateOutput)]
    if any(output.probes for output in exact):
        parts.append(_exact_table(exact))
    if approximate:
        parts.append(_approximate_table(approximate))
    parts += _norms(report)
    if report.bisection is not None:
        parts.append(_bisection(report.bisection))
    parts += [_finding(finding) for finding in fatal]
    parts += [_finding(finding) for finding in report.findings if not finding.fatal]
    return Group(*parts)


def _exact_table(outputs: Sequence[ExactOutput]) -> Table:
    numeric = ("error", "original's", "allowed")
    made = table("output", "probe", *numeric, "", numeric=numeric)
    for output in outputs:
        for errors in output.probes:
            made.add_row(
                Text(output.name),
                errors.probe,
                _number(errors.max_candidate),
                _number(errors.max_original),
                _number(errors.max_bound),
                Text("ok", "green") if errors.passed else Text("FAILED", "bold red"),
            )
    return made


def _approximate_table(outputs: Sequence[ApproximateOutput]) -> Table:
    numeric = (
        "rows",
        "SQNR dB",
        "cosine",
        "worst",
        "max error",
        "top-1",
        "top-5",
        "KL",
        "accuracy",
    )
    made = table("output", *numeric, numeric=numeric)
    for output in outputs:
        made.add_row(
            Text(output.name),
            str(output.rows),
            _number(output.sqnr_db, ".1f") if output.max_abs_error != 0 else "equal",
            _number(output.cosine_mean, ".4f"),
            _number(output.cosine_worst, ".4f"),
            _number(output.max_abs_error),
            _percent(output.top1_agreement),
            _percent(output.top5_agreement),
            _number(output.kl_mean),
            _accuracy(output),
        )
    return made


def _accuracy(output: ApproximateOutput) -> str:
    if output.accuracy_reference is None:
        return "-"
    return f"{_percent(output.accuracy_reference)} -> {_percent(output.accuracy_candidate)}"


def _norms(report: ValidationReport) -> list[RenderableType]:
    """How close the models are at norms: in a line where the contract holds, else one by one."""
    parts: list[RenderableType] = []
    if report.contract == "approximate" and report.sites:
        parts.append(_sites_table(report.sites))
    elif report.sites:
        judged = [site for site in report.sites if site.excess is not None]
        worst = max(judged, key=lambda site: site.excess or 0.0, default=None)
        held = sum(site.passed is not False for site in report.sites)
        line = f"norms: {held} of {len(report.sites)} hold the contract"
        if worst is not None:
            line += f"; at most {worst.excess:.3g} of what is allowed, at {worst.name}"
        parts.append(Text(line, "" if held == len(report.sites) else "red"))
    if report.unmatched:
        names = ", ".join(name for name, _ in report.unmatched[:_PLACES])
        more = len(report.unmatched) - _PLACES
        count = f" and {more} more (--json lists all, with the reasons)" if more > 0 else ""
        parts.append(Text(f"not compared by themselves: {names}{count}", "dim"))
    return parts


def _sites_table(sites: Sequence[SiteComparison]) -> Table:
    numeric = ("SQNR dB", "cosine", "worst")
    made = table("norm", "compared at", *numeric, numeric=numeric)
    for site in sites:
        made.add_row(
            Text(site.name),
            Text("its output" if site.at == "output" else site.at),
            _number(site.sqnr_db, ".1f") if site.max_abs_error != 0 else "equal",
            _number(site.cosine_mean, ".4f"),
            _number(site.cosine_worst, ".4f"),
        )
    return made


def _bisection(found: Bisection) -> Text:
    if found.site is None:
        return Text(f"bisection: {found.note}")
    line = f"bisection: they part at {found.site}"
    if found.operator is not None:
        line += f" ({found.operator} {found.value})"
    places = [
        f"{word} {name}"
        for word, name in (("behind", found.after_norm), ("before", found.before_norm))
        if name is not None
    ]
    line += f", {' and '.join(places)}" if places else ""
    if found.error is not None:
        line += f"; error {found.error:.2e}, {found.allowed:.2e} is rounding"
    if found.probe is not None:
        line += f"; shown by {found.probe}"
    if found.note:
        line += f"; {found.note}"
    if found.reproducer is not None:
        line += f"\n           the inputs that show it: --data {found.reproducer}"
    return Text(line, "bold")


def _finding(finding: Finding) -> Text:
    where = " at ".join(part for part in (finding.probe, finding.output) if part)
    where = f" ({where})" if where else ""
    style = "red" if finding.fatal else "yellow"
    return Text(f"{finding.kind}: {finding.message}{where}", style)


def _number(value: float | None, spec: str = ".2e") -> str:
    return "-" if value is None else format(value, spec)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
