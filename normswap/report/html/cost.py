"""The section on time and memory."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.report.html.formats import listed, milliseconds, number
from normswap.report.html.parts import Picture, Section, Table
from normswap.report.html.svg_bars import Bar, Interval, bars_drawing, intervals_drawing
from normswap.timing.bench_report import BenchReport, Measurement, Ratio

_TITLE = "Time and memory"


def cost_section(bench: BenchReport | None) -> Section:
    if bench is None or not bench.results:
        why = "Time and memory were not measured; normswap bench REFERENCE CANDIDATE does that."
        return Section("cost", _TITLE, [why])
    inputs = (
        listed(f"{name} {size}" for name, size in bench.inputs.items()) if bench.inputs else "-"
    )
    threads = f"{bench.threads} thread{'s' * (bench.threads != 1)}"
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    text = [
        f"The models ran in turn, {bench.rounds} rounds, with {threads}, on {inputs}. Ratios are "
        "of the times in the same round, with 95 % confidence intervals.",
        f"Machine: {bench.machine}. Versions: {versions or '-'}.",
    ]
    text += [f"{_name(result)}: {result.error}" for result in bench.results if result.error]
    pictures = [*_times(bench.results), *_ratios(bench.results), *_memory(bench.results)]
    return Section("cost", _TITLE, text, pictures=pictures, tables=[_table(bench.results)])


def _times(results: Sequence[Measurement]) -> list[Picture]:
    groups = [
        (
            _name(result),
            [Bar(result.milliseconds, words, _style(result, results), result.quartiles)],
        )
        for result in results
        if result.milliseconds is not None
        for words in [f"{milliseconds(result.milliseconds)} ms"]
    ]
    return _bars("Time per run, median and quartiles", groups)


def _memory(results: Sequence[Measurement]) -> list[Picture]:
    groups = [
        (
            _name(result),
            [Bar(result.peak_mib, f"{result.peak_mib:,.0f} MiB", _style(result, results))],
        )
        for result in results
        if result.peak_mib is not None
    ]
    return _bars("Peak memory", groups)


def _bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> list[Picture]:
    if not groups:
        return []
    told = ". ".join(f"{head}: {bars[0].words}" for head, bars in groups)
    data = Table(title, ["model", title], [[head, bars[0].words] for head, bars in groups], [title])
    return [Picture(title, bars_drawing(title, told, groups, None), data)]


def _ratios(results: Sequence[Measurement]) -> list[Picture]:
    first = next((_name(result) for result in results if result.milliseconds is not None), "")
    against = [(_name(result), result.ratio) for result in results if result.ratio]
    within = [
        (_name(result), result.ratio_in_runtime) for result in results if result.ratio_in_runtime
    ]
    return [
        *_intervals(f"Time, as a multiple of that of {first}", against),
        *_intervals("Time, as a multiple of the first model's in the same runtime", within),
    ]


def _intervals(title: str, ratios: Sequence[tuple[str, Ratio]]) -> list[Picture]:
    if not ratios:
        return []
    items = [
        Interval(name, ratio.median, ratio.low, ratio.high, _words(ratio)) for name, ratio in ratios
    ]
    told = ". ".join(f"{item.head}: {item.words}" for item in items)
    data = Table(title, ["model", "ratio"], [[item.head, item.words] for item in items])
    return [Picture(title, intervals_drawing(title, told, items), data)]


def _words(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}): {ratio.verdict}"


def _table(results: Sequence[Measurement]) -> Table:
    numeric = ["median ms", "quartiles", "peak MiB"]
    head = ["model", "runtime", *numeric, "to the first"]
    rows = [
        [
            result.model,
            result.runtime,
            milliseconds(result.milliseconds),
            " to ".join(map(milliseconds, result.quartiles)) if result.quartiles else "-",
            number(result.peak_mib, ",.0f"),
            _words(result.ratio),
        ]
        for result in results
    ]
    if any(result.ratio_in_runtime for result in results):
        head.append("to the first in its runtime")
        for row, result in zip(rows, results, strict=True):
            row.append(_words(result.ratio_in_runtime))
    failed = [index for index, result in enumerate(results) if result.error]
    return Table("Every measurement", head, rows, numeric, ["model"], failed)


def _name(result: Measurement) -> str:
    return f"{result.model}, {result.runtime}"


def _style(result: Measurement, results: Sequence[Measurement]) -> str:
    return "reference" if result is results[0] else "candidate"
