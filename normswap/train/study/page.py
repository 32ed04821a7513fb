"""A comparison as a Markdown page, with its tables, figures and findings, and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType

from normswap.report.line import Line
from normswap.report.terminal import table
from normswap.timing.bench_report import BenchReport
from normswap.train.study.groups import at_best_rate, crashes, difference, groups, highest_stable
from normswap.train.study.results import AGREES, DISAGREES, Comparison
from normswap.train.study.runs import DIVERGED, STUCK
from normswap.train.study.variants import LN, VARIANTS

_CAPTIONS = {
    "loss-curves": "Training loss: the median over the seeds, their range, and each crashed run "
    "with a cross at its end.",
    "accuracy": "Test accuracy against the learning rate.",
    "crashes": "Runs that crashed.",
    "inference-time": "Time of one inference beside LN's.",
}


def page(comparison: Comparison, figures: Sequence[str], command: str | None) -> str:
    """The whole page. ``figures``: names of SVG files beside it."""
    o = comparison.options
    lines = ["# LayerNorm against BatchNorm", ""]
    lines += [f"    {command}", ""] if command else []
    lines += [
        f"{o.model[:1].upper()}{o.model[1:]}; {o.data}, {o.train_samples} samples to "
        f"train on, {o.test_samples} to test. {len(comparison.runs)} runs: "
        f"{len(o.variants)} variants, {len(o.rates)} learning rates, {o.seeds} seeds; "
        f"{o.steps} steps of {o.batch} samples, AdamW, warm-up and cosine, no gradient "
        "clipping, no augmentation. The variants of a seed begin with the same weights and see the "
        f"same batches. {comparison.cpu_seconds / 60:.0f} min of one core; {comparison.machine}.",
        "",
        *best_table(comparison),
        "",
        "Accuracies are the mean and standard deviation over the seeds, in percent, at the rate "
        "with the highest mean (chosen on the test samples, for all variants alike). A run "
        f"*{DIVERGED}* if its loss became NaN or infinite or ended (mean of the last tenth of the "
        f"steps) above where it began, and *{STUCK}* if it ended less than a tenth below what "
        "guessing costs; crashed is either. *Statistics*: means and variances computed for one "
        "sample by the model as it is used, BatchNorms folded.",
        "",
        "## Findings",
        "",
    ]
    for finding in comparison.findings:
        lines += [f"- **{finding.claim}** *{finding.verdict.capitalize()}.* {finding.text}"]
    lines += ["", "## Accuracy by learning rate", "", *rate_table(comparison), ""]
    if comparison.bench is not None:
        lines += ["## Inference", "", *time_table(comparison.bench), ""]
    for name in figures:
        lines += [f"![{_CAPTIONS[name]}]({name}.svg)", ""]
    return "\n".join(lines)


def best_table(comparison: Comparison) -> list[str]:
    """A row for each variant: what it reaches, how often it crashes, what it costs."""
    lines = [
        "| | best rate | accuracy | against LN (95 %) | crashed | stable up to | folded exactly "
        "| in ONNX | norms left | statistics |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    deployed = {model.variant: model for model in comparison.deployed}
    for variant in comparison.options.variants:
        best = at_best_rate(comparison.runs, variant)
        gap = difference(comparison.runs, variant, LN)
        against = f"{gap.mean:+.1f}"
        if gap.low is not None and gap.high is not None:
            against += f" ({gap.low:+.1f} to {gap.high:+.1f})"
        crashed, runs = crashes(comparison.runs, variant)
        stable = highest_stable(comparison.runs, variant)
        own = [r.folded for r in comparison.runs if r.run.variant == variant and r.folded]
        exact = sum(folded.exact and not folded.norms_left for folded in own)
        model = deployed.get(variant)
        cells = [
            VARIANTS[variant],
            f"{best.rate:g}",
            f"{best.mean:.1f} ± {best.deviation:.1f}",
            "" if variant == LN else against,
            f"{crashed} of {runs}",
            "none" if stable is None else f"{stable:g}",
            f"{exact} of {len(own)}" if own else "",
            f"{model.onnx_accuracy:.1f} (torch {model.accuracy:.1f})" if model else "",
            str(model.norms) if model else "",
            f"{model.statistics:,}" if model else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rate_table(comparison: Comparison) -> list[str]:
    """Mean and deviation of every variant at every rate, and how many runs crashed."""
    rates = comparison.options.rates
    lines = [
        f"| | {' | '.join(f'{rate:g}' for rate in sorted(rates))} |",
        f"|---|{'---|' * len(rates)}",
    ]
    for variant in comparison.options.variants:
        cells = []
        for group in groups(comparison.runs, variant):
            crashed = f", {group.crashed} crashed" if group.crashed else ""
            cells.append(f"{group.mean:.1f} ± {group.deviation:.1f}{crashed}")
        lines.append(f"| {VARIANTS[variant]} | {' | '.join(cells)} |")
    return lines


def time_table(bench: BenchReport) -> list[str]:
    """Times, and as a share of the first model's in the same runtime and round."""
    inputs = ", ".join(f"{name} {sizes}" for name, sizes in bench.inputs.items())
    lines = ["| | runtime | ms | share of the time of LN (95 %) | |", "|---|---|---|---|---|"]
    for result in bench.results:
        ratio = result.ratio_in_runtime or result.ratio
        if result.model == bench.results[0].model:
            ratio = None
        if result.milliseconds is None:
            cells = [result.model, result.runtime, "-", "-", result.error or ""]
        elif ratio is None:
            cells = [result.model, result.runtime, f"{result.milliseconds:.3g}", "1", ""]
        else:
            share = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            cells = [
                result.model,
                result.runtime,
                f"{result.milliseconds:.3g}",
                share,
                ratio.verdict,
            ]
        lines.append(f"| {' | '.join(cells)} |")
    threads = f"{bench.threads} thread{'s' if bench.threads > 1 else ''}"
    versions = ", ".join(f"{k} {v}" for k, v in bench.versions.items())
    return [*lines, "", f"{bench.rounds} rounds in turn of {inputs}; {threads}; {versions}."]


_COLORS = {AGREES: "green", DISAGREES: "red"}


def comparison_view(comparison: Comparison, folder: Path) -> RenderableType:
    """The table, the findings, and where the rest is."""
    columns = ("best rate", "accuracy", "against LN", "crashed", "stable up to")
    made = table("norm", *columns, numeric=columns)
    for variant in comparison.options.variants:
        best = at_best_rate(comparison.runs, variant)
        crashed, runs = crashes(comparison.runs, variant)
        stable = highest_stable(comparison.runs, variant)
        gap = difference(comparison.runs, variant, LN).mean
        made.add_row(
            Line(VARIANTS[variant]),
            f"{best.rate:g}",
            f"{best.mean:.1f} ± {best.deviation:.1f} %",
            "" if variant == LN else f"{gap:+.1f}",
            f"{crashed} of {runs}",
            "none" if stable is None else f"{stable:g}",
        )
    parts: list[RenderableType] = [made]
    for finding in comparison.findings:
        verdict = Line(f"{finding.verdict}: ", _COLORS.get(finding.verdict, "yellow"))
        parts.append(Line(f"{finding.claim} ", "bold") + verdict + Line(finding.text))
    return Lines(*parts, Line(f"figures and all runs: {folder}/README.md", "dim"))
