"""A benchmark as rich renderables: a table, then what it means in words."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.text import Text

from normswap.report.terminal import table
from normswap.timing.bench_report import BenchReport, Measurement, Ratio


def bench_view(report: BenchReport) -> RenderableType:
    """The times in turn, a sentence for each model, and how they were measured."""
    within = any(result.ratio_in_runtime is not None for result in report.results)
    numeric = ("ms", "quartiles", "time beside the first", "in its runtime", "peak MiB")
    shown = [name for name in numeric if within or name != "in its runtime"]
    made = table("model", "runtime", *shown, "", numeric=numeric)
    labels = _labels(report)
    for label, result in zip(labels, report.results, strict=True):
        cells = _cells(result, within)
        verdict = Text("failed", "bold red") if result.error else _verdict(result)
        made.add_row(Text(label), result.runtime, *cells, verdict)
    parts: list[RenderableType] = [made]
    parts += [_sentence(report, labels, index) for index in range(len(labels))]
    return Group(*parts, Text(_circumstances(report), "dim"))


def _labels(report: BenchReport) -> list[str]:
    """The models' names, or paths where two models have the same name."""
    models = {(result.model, result.path) for result in report.results}
    names = Counter(name for name, _ in models)
    return [r.path if r.path and names[r.model] > 1 else r.model for r in report.results]


def _cells(result: Measurement, within: bool) -> list[str]:
    if result.milliseconds is None or result.quartiles is None:
        return ["-"] * (5 if within else 4)
    cells = [_milliseconds(result.milliseconds), "-".join(map(_milliseconds, result.quartiles))]
    cells.append(_ratio(result.ratio) if result.ratio else "1")
    if within:
        cells.append(_ratio(result.ratio_in_runtime) if result.ratio_in_runtime else "")
    return [*cells, "-" if result.peak_mib is None else f"{result.peak_mib:.1f}"]


def _verdict(result: Measurement) -> Text:
    ratio = result.ratio_in_runtime or result.ratio
    if ratio is None:
        return Text("")
    return Text(ratio.verdict, {"faster": "green", "slower": "red"}.get(ratio.verdict, ""))


def _sentence(report: BenchReport, labels: list[str], index: int) -> Text:
    result = report.results[index]
    told = f"{labels[index]} in {result.runtime}"
    if result.error is not None:
        return Text(result.error, "bold red")
    ratio = result.ratio_in_runtime or result.ratio
    if ratio is None:
        return Text(f"{told}: what the others are held against")
    others = zip(labels, report.results, strict=True)
    base, other = next(
        (label, r)
        for label, r in others
        if r.error is None and (r.runtime == result.runtime or not result.ratio_in_runtime)
    )
    beside = f"{base} in {other.runtime}"
    figures = f"{ratio.median:.3f} times the time, 95 % interval {_interval(ratio)}"
    if ratio.verdict == "no difference shown":
        return Text(f"{told}: no difference from {beside} shown ({figures})")
    return Text(f"{told}: {ratio.verdict} than {beside} ({figures})")


def _circumstances(report: BenchReport) -> str:
    inputs = ", ".join(f"{name} {sizes}" for name, sizes in report.inputs.items())
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    runtimes = dict.fromkeys(result.runtime for result in report.results)
    versions = ", ".join(f"{name} {report.versions[name]}" for name in runtimes)
    return (
        f"{report.rounds} rounds in turn of {inputs}; {threads}; {versions}; {report.machine}\n"
        "times are medians; ratios are of the same round, their median with its 95 % interval from "
        "order statistics; peak: resident memory of a process of its own, above the bare runtime's"
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({_interval(ratio, '-')})"


def _interval(ratio: Ratio, between: str = " to ") -> str:
    return f"{ratio.low:.3f}{between}{ratio.high:.3f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
