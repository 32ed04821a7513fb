"""The section on time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normswap.parity.report import ModelSummary, ValidationReport
from normswap.report.html.parts import Picture, Section, Table, counted, listed, number, table_of
from normswap.report.html.svg import Bar, bars_drawing, intervals_drawing
from normswap.timing.bench_report import BenchReport, Measurement, Ratio

_TITLE = "Time and memory"


def cost_section(bench: BenchReport | None) -> Section:
    if bench is None or not bench.results:
        why = "Time and memory were not measured; normswap bench REFERENCE CANDIDATE does that."
        return Section("cost", _TITLE, [why])
    inputs = (
        listed(f"{name} {size}" for name, size in bench.inputs.items()) if bench.inputs else "-"
    )
    threads = counted(bench.threads, "thread")
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    text = [
        f"The models ran in turn, {bench.rounds} rounds, with {threads}, on {inputs}. Ratios are "
        "of the times in the same round, with 95 % confidence intervals.",
        f"Machine: {bench.machine}. Versions: {versions or '-'}.",
    ]
    results = bench.results
    text += [f"{_name(result)}: {result.error}" for result in results if result.error]
    times, memory = "Time per run, median and quartiles", "Peak memory"
    pictures = [
        *_bars(times, results, "milliseconds", lambda value: f"{_ms(value)} ms"),
        *_ratios(results),
        *_bars(memory, results, "peak_mib", lambda value: f"{value:,.0f} MiB"),
    ]
    return Section("cost", _TITLE, text, pictures=pictures, tables=[_table(results)])


def time_ratios(report: ValidationReport, bench: BenchReport | None) -> list[tuple[str, Ratio]]:
    """The candidate's time to the reference's in each runtime that ran both, the reference first:
    (runtime, ratio)."""
    measured = [result for result in bench.results if result.milliseconds] if bench else []
    ratios = []
    for runtime in dict.fromkeys(result.runtime for result in measured):
        first, *others = (result for result in measured if result.runtime == runtime)
        if _is(first, report.reference):
            for other in others:
                ratio = other.ratio_in_runtime or other.ratio
                if ratio is not None and _is(other, report.candidate):
                    ratios.append((runtime, ratio))
    return ratios


def _is(measured: Measurement, model: ModelSummary) -> bool:
    if measured.path is not None and model.path is not None:
        return measured.path == model.path
    return measured.model == model.name


def _bars(
    title: str, results: Sequence[Measurement], field: str, words: Callable[[float], str]
) -> list[Picture]:
    bars = []
    for result in results:
        if (value := getattr(result, field)) is not None:
            spread = result.quartiles if field == "milliseconds" else None
            style = "reference" if result is results[0] else "candidate"
            bars.append((_name(result), [Bar(value, words(value), style, spread)]))
    if not bars:
        return []
    rows = [[head, bar.words] for head, (bar,) in bars]
    description = ". ".join(f"{head}: {value}" for head, value in rows)
    data = Table(title, ["model", title], rows, [title])
    return [Picture(title, bars_drawing(title, description, bars, None), data)]


def _ratios(results: Sequence[Measurement]) -> list[Picture]:
    first = next((_name(result) for result in results if result.milliseconds is not None), "")
    within = "Time, as a multiple of the first model's in the same runtime"
    return [
        *_intervals(f"Time, as a multiple of that of {first}", results, "ratio"),
        *_intervals(within, results, "ratio_in_runtime"),
    ]


def _intervals(title: str, results: Sequence[Measurement], field: str) -> list[Picture]:
    known = [(_name(result), getattr(result, field)) for result in results]
    ratios = [(name, ratio, _words(ratio)) for name, ratio in known if ratio]
    if not ratios:
        return []
    rows = [[name, words] for name, _, words in ratios]
    description = ". ".join(f"{name}: {words}" for name, words in rows)
    data = Table(title, ["model", "ratio"], rows)
    return [Picture(title, intervals_drawing(title, description, ratios), data)]


def _words(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}): {ratio.verdict}"


def _table(results: Sequence[Measurement]) -> Table:
    several = any(result.ratio_in_runtime for result in results)
    rows = [
        {
            "model": result.model,
            "runtime": result.runtime,
            "median ms": _ms(result.milliseconds),
            "quartiles": " to ".join(map(_ms, result.quartiles)) if result.quartiles else "-",
            "peak MiB": number(result.peak_mib, ",.0f"),
            "to the first": _words(result.ratio),
            **({"to the first in its runtime": _words(result.ratio_in_runtime)} if several else {}),
        }
        for result in results
    ]
    numeric = ["median ms", "quartiles", "peak MiB"]
    failed = [bool(result.error) for result in results]
    return table_of("Every measurement", rows, numeric, ["model"], failed)


def _ms(value: float | None) -> str:
    return number(value, ".2f" if value is None or value < 100 else ".1f")


def _name(result: Measurement) -> str:
    return f"{result.model}, {result.runtime}"
