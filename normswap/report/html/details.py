"""The section with every figure of the exact contract."""

from __future__ import annotations

from normswap.parity.report import ExactOutput, ValidationReport
from normswap.report.html.excess import excess
from normswap.report.html.formats import number, times
from normswap.report.html.parts import Section, Table

_TITLE = "Every output and probe"


def details_section(report: ValidationReport) -> Section:
    outputs = [output for output in report.outputs if isinstance(output, ExactOutput)]
    if not outputs:
        return Section("details", _TITLE, ["No output was compared."])
    text = [
        "Errors against the reference in float64, in the units of the output. Allowed: twice the "
        "original's own error and one rounding step of the output, for the largest error and for "
        "the root mean square (rms)."
    ]
    text += [
        f"{output.name} ({output.dtype}) was compared for equality, or could not be compared."
        for output in outputs
        if not output.probes
    ]
    tables = [_table(output) for output in outputs if output.probes]
    return Section("details", _TITLE, text, tables=tables)


def _table(output: ExactOutput) -> Table:
    names = dict.fromkeys([output.name, output.candidate_name])
    numeric = ["elements", "largest value", "error", "original's", "allowed"]
    numeric += ["rms error", "original's rms", "allowed rms", "error / allowed"]
    rows = [
        [
            errors.probe,
            f"{errors.elements:,}",
            number(errors.scale),
            number(errors.max_candidate),
            number(errors.max_original),
            number(errors.max_bound),
            number(errors.rms_candidate),
            number(errors.rms_original),
            number(errors.rms_bound),
            times(excess(errors)),
            "ok" if errors.passed else "FAILED",
        ]
        for errors in output.probes
    ]
    failed = [index for index, errors in enumerate(output.probes) if not errors.passed]
    caption = f"{' / '.join(names)}, {output.dtype}"
    return Table(caption, ["probe", *numeric, ""], rows, numeric, failed=failed)
