"""Results for the terminal, as rich renderables: a view for each command."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normswap.io.onnx import data_files_of
from normswap.lowering.inference import kernels_of
from normswap.model import Model
from normswap.norms.site import Rejection, Site
from normswap.report.input_shapes import sizes_text
from normswap.report.inspection import InspectedSite, Inspection, inspection
from normswap.report.line import Line

if TYPE_CHECKING:  # what a command does not show need not be imported
    from normswap.field.certificate import Certificate
    from normswap.parity.held_out import Agreement
    from normswap.parity.report import (
        ApproximateOutput,
        Bisection,
        ExactOutput,
        Finding,
        SiteComparison,
        ValidationReport,
    )
    from normswap.passes.base import PassResult
    from normswap.precision.convert import Conversion
    from normswap.report.rewriting import Rewriting
    from normswap.timing.bench_report import BenchReport, Measurement, Ratio
    from normswap.train.distill import DistillResult

_NAME_WIDTH = 20  # at least
_PLACES = 3  # of norms that are no sites, or were not compared, and of data files
_GOOD, _BAD, _WARN, _DIM = "green", "bold red", "yellow", "dim"


# -- parts of all views --------------------------------------------------------------------------


def table(*columns: str, numeric: Sequence[str] = ()) -> Table:
    """An empty table. Columns are folded where space is short, those of names first."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in numeric else "left",
            no_wrap=False,
            overflow="fold",
        )
    return made


def written_view(path: Path, model: Model) -> RenderableType:
    """The file that was written, its size, the files beside it that hold its weights and, of a
    ``.pt2``, what it needs to run."""
    size = _megabytes([path])
    if path.suffix != ".pt2":
        return Line(f"wrote {path} ({size}){_beside(path)}")
    kernels = len(kernels_of(model.graph))
    if not kernels:
        return Line(f"wrote {path} ({size}), which plain torch loads")
    needs = "import normswap.lowering.kernels before torch.export.load"
    return Line(f"wrote {path} ({size}), with {kernels} norms as normswap's kernels: {needs}")


def _beside(path: Path) -> str:
    """The data files of an ONNX file and their size; '' if it has none."""
    files = sorted(data_files_of(path))
    if not files:
        return ""
    folder = Path(os.path.realpath(path.parent))
    names = [str(file.relative_to(folder)) for file in files]
    more = f" and {len(names) - _PLACES} more" if len(names) > _PLACES else ""
    return f", with its weights in {', '.join(names[:_PLACES])}{more} ({_megabytes(files)})"


def _megabytes(files: Iterable[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _filled(made: Table, rows: Iterable[Sequence[str | Text]]) -> Table:
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Line(cell) for cell in row))
    return made


def _number(value: float | None, spec: str = ".2e") -> str:
    return "-" if value is None else format(value, spec)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


# -- inspect -------------------------------------------------------------------------------------


def inspection_view(found: Inspection) -> RenderableType:
    """The table of sites, what they cost in all, and what was rejected."""
    count = len(found.sites)
    noun = "norm" if count == 1 else "norms"
    parts: list[RenderableType] = [Line(f"{found.model}: {count} {noun} ({found.kind})", "bold")]
    if found.sites:
        parts += [_sites_table(found.sites), _costs(found)]
    return Group(*parts, *_rejections(found.rejected))


def model_view(model: Model) -> RenderableType:
    """``inspection_view`` of a model on its examples."""
    return inspection_view(inspection(model))


def _sites_table(sites: Sequence[InspectedSite]) -> RenderableType:
    """A row for each; what all of them share is said above, which leaves room for the names."""
    columns = {
        "site": [found.site.name for found in sites],
        "kind": [found.site.kind for found in sites],
        "role": [found.site.role for found in sites],
        "tower": [found.site.tower for found in sites],
        "shape": [_shape_text(found.input_shape, found.site.axes) for found in sites],
        "spelling": [found.site.spelling for found in sites],
        "eps": [f"{found.site.epsilon:.6g}" for found in sites],
        "statistics": ["?" if s.statistics is None else f"{s.statistics:,}" for s in sites],
        "folded BN": [f"{found.statistics_folded_batch_norm:,}" for found in sites],
    }
    shared = []
    for name in ("kind", "tower", "spelling", "eps"):
        if len(sites) > 1 and len(set(columns[name])) == 1:
            value = columns.pop(name)[0]
            shared += [f"{name} {value}"] if value else []
    rows = [list(map(Line, row)) for row in zip(*columns.values(), strict=True)]
    made = _filled(table(*columns, numeric=("eps", "statistics", "folded BN")), rows)
    return Group(Line(f"all of them: {', '.join(shared)}", _DIM), made) if shared else made


def _shape_text(shape: Sequence[int] | None, marked: Sequence[int]) -> str:
    """A shape like 2x17x[48], the axes ``marked`` in brackets."""
    if shape is None:
        return "?"
    return "x".join(f"[{s}]" if axis in marked else str(s) for axis, s in enumerate(shape))


def _costs(found: Inspection) -> Group:
    unknown = any(site.statistics is None for site in found.sites)
    total = f"{'at least ' if unknown else ''}{found.statistics:,} statistics"
    sizes = ", ".join(f"{name} {sizes_text(shape)}" for name, shape in found.examples.items())
    costs = f"{total} are computed for {sizes}; folded BatchNorm computes "
    brackets = "[brackets] are around the sizes that are normalised, or a BatchNorm's channels"
    return Group(Line(f"{costs}{found.statistics_folded_batch_norm}", _DIM), Line(brackets, _DIM))


def _rejections(rejected: Sequence[Rejection]) -> list[Line]:
    """A line for each reason, and one of the first places."""
    places: dict[str, list[str]] = {}
    for rejection in rejected:
        places.setdefault(rejection.reason, []).append(rejection.where)
    lines = []
    for reason, where in places.items():
        count = f"{len(where)} times " if len(where) > 1 else ""
        more = f", and {len(where) - _PLACES} more (--json lists all)"
        names = ", ".join(where[:_PLACES]) + (more if len(where) > _PLACES else "")
        lines += [Line(f"no norm: {count}{reason}", _WARN), Line(f"         in {names}", _WARN)]
    return lines


# -- swap and fold -------------------------------------------------------------------------------


def rewriting_view(report: Rewriting) -> RenderableType:
    """What the passes did to each site, their notes, and the file that was written."""
    from normswap.passes.base import NormsFitted

    parts: list[RenderableType] = []
    parts += [Line(f"{name}: {_count(result)}", "bold") for name, result in report.steps]
    parts.append(_outcomes(report.steps))
    parts += [line for _, result in report.steps for line in _cost(result)]
    parts += [Line(f"note: {note}") for _, result in report.steps for note in result.notes]
    parts += [line for _, result in report.steps for line in _certificate(result.certificate)]
    if report.conversion is not None:
        parts.append(conversion_view(report.conversion))
    for name, reason in report.unmet:
        parts.append(Line(f"asked for and not done: {name}: {reason}", _BAD))
    if report.output is not None:
        parts.append(written_view(report.output, report.model))
        if any(isinstance(result, NormsFitted) for _, result in report.steps):
            command = f"normswap validate {report.source.name} {report.output}"
            parts.append(Line(f"next: {command} --contract approximate --data DATA", _DIM))
    return Group(*parts)


def conversion_view(found: Conversion) -> RenderableType:
    """What a conversion to half precision kept in float32, and its notes."""
    count = len(found.islands)
    title = f"{found.format}: {count or 'no'} {'island' if count == 1 else 'islands'} of float32"
    parts: list[RenderableType] = [Line(title, "bold")]
    if count:
        rows = [(Line(i.name), str(i.nodes), Line(i.reason, _WARN)) for i in found.islands]
        parts.append(_filled(table("island", "operators", "why", numeric=("operators",)), rows))
    return Group(*parts, *(Line(f"note: {note}") for note in found.notes))


def result_view(result: PassResult) -> RenderableType:
    """The same of one pass in Python, which has written no file."""
    name = result.model.history[-1].name if result.modified else "nothing changed"
    notes = [Line(f"note: {note}") for note in result.notes]
    title = Line(f"{result.model.label}: {_count(result)}", "bold")
    proof = _certificate(result.certificate)
    return Group(title, _outcomes([(name, result)]), *_cost(result), *notes, *proof)


def _cost(result: PassResult) -> list[Line]:
    """What a fitted swap costs: how far its outputs are off on held-out samples, and which norms
    are the worst."""
    from normswap.passes.base import NormsFitted

    if not isinstance(result, NormsFitted) or not result.modified:
        return []
    lines = [Line(_agreement(output), "bold") for output in result.agreement]
    if not lines:
        lines = [Line("no output depends on the inputs in DATA alone: none was compared", _WARN)]
    worst = sorted(result.fits, key=lambda fit: -fit.held_out_error)[:_PLACES]
    errors = ", ".join(f"{f.site.name} ({_percent(f.held_out_error)})" for f in worst)
    return [*lines, Line(f"furthest off, as a share of what the norm gave: {errors}")]


def _agreement(output: Agreement) -> str:
    same = "" if output.top1 is None else f", same class {_percent(output.top1)}"
    cosine = f"cosine {output.cosine:.4f} (worst {output.cosine_worst:.4f})"
    held_out = f"on {output.samples} held-out samples"
    return f"{output.output} {held_out}: SQNR {output.sqnr_db:.1f} dB, {cosine}{same}"


def _outcomes(steps: Sequence[tuple[str, PassResult]]) -> Table:
    """A row for each site, with what each pass did with it."""
    from normswap.passes.base import NormsFitted

    rows: dict[str, tuple[Site, dict[str, Text]]] = {}
    for name, result in steps:
        forms = {f.site: f.form for f in result.fits} if isinstance(result, NormsFitted) else {}
        told = [(site, Line(forms.get(site, "done"), _GOOD)) for site in result.done]
        told += [(site, Line(f"skipped: {why}", _WARN)) for site, why in result.skipped]
        told += [(site, Line(why, _WARN)) for site, why in result.kept]
        for site, outcome in told:
            rows.setdefault(site.name, (site, {}))[1][name] = outcome
    made = table("site", "role", "tower", *(name for name, _ in steps))
    for site, by_pass in rows.values():
        outcomes = [by_pass.get(name, Line()) for name, _ in steps]
        made.add_row(Line(site.name), Line(site.role), Line(site.tower), *outcomes)
    return made


def _count(result: PassResult) -> str:
    if not result.done and not result.skipped and not result.kept:
        return "nothing to do"
    kept = f", {len(result.kept)} kept" if result.kept else ""
    return f"{len(result.done)} done, {len(result.skipped)} skipped{kept}"


# -- validate ------------------------------------------------------------------------------------


def validation_view(report: ValidationReport) -> RenderableType:
    """The verdict first, then the figures, then the findings."""
    from normswap.parity.report import ApproximateOutput, ExactOutput

    names = f"{report.candidate.name} against {report.reference.name}"
    # Figures of another function are neither passed nor failed: the reader decides.
    verdict = {"exact": "passed", "approximate": "measured"}[report.contract]
    title = f"{report.contract} contract {verdict if report.passed else 'FAILED'}: {names}"
    parts: list[RenderableType] = [Line(title, "bold green" if report.passed else _BAD)]
    parts += _certificate(report.certificate)
    exact = [output for output in report.outputs if isinstance(output, ExactOutput)]
    approximate = [output for output in report.outputs if isinstance(output, ApproximateOutput)]
    if any(output.probes for output in exact):
        parts.append(_exact_table(exact))
    if approximate:
        parts.append(_approximate_table(approximate))
    parts += _norms(report)
    if report.bisection is not None:
        parts.append(_bisection(report.bisection))
    findings = sorted(report.findings, key=lambda finding: not finding.fatal)
    return Group(*parts, *map(_finding, findings))


def _certificate(found: Certificate | None) -> list[RenderableType]:
    """Whether it is certified, and what the certificate says nothing about."""
    if found is None:
        return []
    parts: list[RenderableType] = [Line(found.words, _GOOD if found.certified else _BAD)]
    return [*parts, *(Line(f"not covered: {what}", _DIM) for what in found.not_covered)]


def _exact_table(outputs: Sequence[ExactOutput]) -> Table:
    numeric = ("error", "original's", "allowed")
    rows = [
        (
            Line(output.name),
            errors.probe,
            _number(errors.max_candidate),
            _number(errors.max_original),
            _number(errors.max_bound),
            Line("ok", _GOOD) if errors.passed else Line("FAILED", _BAD),
        )
        for output in outputs
        for errors in output.probes
    ]
    return _filled(table("output", "probe", *numeric, "", numeric=numeric), rows)


def _approximate_table(outputs: Sequence[ApproximateOutput]) -> Table:
    numeric = ["rows", "SQNR dB", "cosine", "worst", "max error", "top-1", "top-5", "KL"]
    numeric += ["accuracy"]
    rows = [
        (
            Line(output.name),
            str(output.rows),
            *_closeness(output),
            _number(output.max_abs_error),
            _percent(output.top1_agreement),
            _percent(output.top5_agreement),
            _number(output.kl_mean),
            "-"
            if output.accuracy_reference is None
            else f"{_percent(output.accuracy_reference)} -> {_percent(output.accuracy_candidate)}",
        )
        for output in outputs
    ]
    return _filled(table("output", *numeric, numeric=numeric), rows)


def _norms(report: ValidationReport) -> list[RenderableType]:
    """How close the models are at norms: in a line where the contract holds, else one by one."""
    parts: list[RenderableType] = []
    if report.contract == "approximate" and report.sites:
        numeric = ("SQNR dB", "cosine", "worst")
        rows = [
            (Line(s.name), Line("its output" if s.at == "output" else s.at), *_closeness(s))
            for s in report.sites
        ]
        parts.append(_filled(table("norm", "compared at", *numeric, numeric=numeric), rows))
    elif report.sites:
        judged = [site for site in report.sites if site.excess is not None]
        worst = max(judged, key=lambda site: site.excess or 0.0, default=None)
        held = sum(site.passed is not False for site in report.sites)
        line = f"norms: {held} of {len(report.sites)} hold the contract"
        if worst is not None:
            line += f"; at most {worst.excess:.3g} of what is allowed, at {worst.name}"
        parts.append(Line(line, "" if held == len(report.sites) else "red"))
    if report.unmatched:
        names = ", ".join(name for name, _ in report.unmatched[:_PLACES])
        more = len(report.unmatched) - _PLACES
        count = f" and {more} more (--json lists all, with the reasons)" if more > 0 else ""
        parts.append(Line(f"not compared by themselves: {names}{count}", _DIM))
    return parts


def _closeness(compared: ApproximateOutput | SiteComparison) -> tuple[str, str, str]:
    return (
        _number(compared.sqnr_db, ".1f") if compared.max_abs_error != 0 else "equal",
        _number(compared.cosine_mean, ".4f"),
        _number(compared.cosine_worst, ".4f"),
    )


def _bisection(found: Bisection) -> RenderableType:
    if found.site is None:
        return Line(f"bisection: {found.note}")
    line = f"bisection: they part at {found.site}"
    if found.operator is not None:
        line += f" ({found.operator} {found.value})"
    norms = (("behind", found.after_norm), ("before", found.before_norm))
    places = [f"{word} {name}" for word, name in norms if name is not None]
    line += f", {' and '.join(places)}" if places else ""
    if found.error is not None:
        line += f"; error {found.error:.2e}, {found.allowed:.2e} is rounding"
    if found.probe is not None:
        line += f"; shown by {found.probe}"
    if found.note:
        line += f"; {found.note}"
    lines = [Line(line, "bold")]
    if found.reproducer is not None:
        lines.append(Line(f"           the inputs that show it: --data {found.reproducer}", "bold"))
    return Group(*lines)


def _finding(finding: Finding) -> Text:
    where = " at ".join(part for part in (finding.probe, finding.output) if part)
    where = f" ({where})" if where else ""
    return Line(f"{finding.kind}: {finding.message}{where}", "red" if finding.fatal else _WARN)


# -- bench ---------------------------------------------------------------------------------------


def bench_view(report: BenchReport) -> RenderableType:
    """The times in turn, a sentence for each model, and how they were measured."""
    within = any(result.ratio_in_runtime is not None for result in report.results)
    numeric = ("ms", "quartiles", "time beside the first", "in its runtime", "peak MiB")
    shown = [name for name in numeric if within or name != "in its runtime"]
    made = table("model", "runtime", *shown, "", numeric=numeric)
    models = {(result.model, result.path) for result in report.results}
    names = Counter(name for name, _ in models)
    # Paths where two models have the same name.
    labels = [r.path if r.path and names[r.model] > 1 else r.model for r in report.results]
    for label, result in zip(labels, report.results, strict=True):
        verdict = Line("failed", _BAD) if result.error else _verdict(result)
        _filled(made, [(label, result.runtime, *_times(result, within), verdict)])
    sentences = [_sentence(report, labels, index) for index in range(len(labels))]
    return Group(made, *sentences, *(Line(line, _DIM) for line in _circumstances(report)))


def _times(result: Measurement, within: bool) -> list[str]:
    if result.milliseconds is None or result.quartiles is None:
        return ["-"] * (5 if within else 4)
    cells = [_milliseconds(result.milliseconds), "-".join(map(_milliseconds, result.quartiles))]
    cells.append(_ratio(result.ratio) if result.ratio else "1")
    if within:
        cells.append(_ratio(result.ratio_in_runtime) if result.ratio_in_runtime else "")
    return [*cells, _number(result.peak_mib, ".1f")]


def _verdict(result: Measurement) -> Text:
    ratio = result.ratio_in_runtime or result.ratio
    if ratio is None:
        return Line("")
    return Line(ratio.verdict, {"faster": _GOOD, "slower": "red"}.get(ratio.verdict, ""))


def _sentence(report: BenchReport, labels: list[str], index: int) -> Text:
    result = report.results[index]
    name = f"{labels[index]} in {result.runtime}"
    if result.error is not None:
        return Line(result.error, _BAD)
    ratio = result.ratio_in_runtime or result.ratio
    if ratio is None:
        return Line(f"{name}: what the others are held against")
    base, other = next(
        (label, r)
        for label, r in zip(labels, report.results, strict=True)
        if r.error is None and (r.runtime == result.runtime or not result.ratio_in_runtime)
    )
    beside = f"{base} in {other.runtime}"
    interval = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    figures = f"{ratio.median:.3f} times the time, {interval}"
    if ratio.verdict == "no difference shown":
        return Line(f"{name}: no difference from {beside} shown ({figures})")
    return Line(f"{name}: {ratio.verdict} than {beside} ({figures})")


def _circumstances(report: BenchReport) -> tuple[str, str]:
    inputs = ", ".join(f"{name} {sizes}" for name, sizes in report.inputs.items())
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    runtimes = dict.fromkeys(result.runtime for result in report.results)
    versions = ", ".join(f"{name} {report.versions[name]}" for name in runtimes)
    return (
        f"{report.rounds} rounds in turn of {inputs}; {threads}; {versions}; {report.machine}",
        "times are medians; ratios are of the same round, their median with its 95 % interval from "
        "order statistics; peak: resident memory of a process of its own, above the bare runtime's",
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


# -- distill -------------------------------------------------------------------------------------

_FIGURES = {
    "SQNR dB": ("sqnr_db", "{:.1f}"),
    "cosine": ("cosine_mean", "{:.4f}"),
    "top-1": ("top1_agreement", "{:.1%}"),
    "accuracy": ("accuracy_candidate", "{:.1%}"),
}


def distillation_view(result: DistillResult) -> RenderableType:
    """The loss, a row for each output before and after, and notes."""
    from normswap.parity.report import ApproximateOutput

    resumed = f", resumed at step {result.resumed_at}" if result.resumed_at else ""
    what = f"{result.trained} BatchNorms trained" if result.trained else "trained"
    title = Line(
        f"{what} for {len(result.losses)} steps{resumed}: loss {result.losses[0]:.4g} to "
        f"{result.losses[-1]:.4g}",
        "bold",
    )
    made = table("output", "", *_FIGURES, numeric=tuple(_FIGURES))
    reports = {"before": result.before, "after": result.after}
    for name in dict.fromkeys(o.name for report in reports.values() for o in report.outputs):
        for when, report in reports.items():
            same = (o for o in report.outputs if isinstance(o, ApproximateOutput))
            compared = next((o for o in same if o.name == name), None)
            values = [(getattr(compared, field, None), form) for field, form in _FIGURES.values()]
            cells = [form.format(v) if v is not None else "" for v, form in values]
            _filled(made, [(name if when == "before" else "", when, *cells)])
    basis = Line(
        f"against the original on {result.samples} samples of the data; {result.statistics} "
        f"statistics",
        _DIM,
    )
    notes = [Line(f"note: {note}") for note in result.notes]
    return Group(title, made, basis, *notes)
