"""A comparison as a Markdown page, with its tables, figures and findings, and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Group as Lines
from rich.console import RenderableType

from normswap.report.line import Line
from normswap.report.terminal import table
from normswap.timing.bench_report import BenchReport
from normswap.train.study.groups import (
    Group,
    at_best_rate,
    crashes,
    difference,
    groups,
    highest_stable,
)
from normswap.train.study.results import AGREES, DISAGREES, GRID, Comparison
from normswap.train.study.runs import DIVERGED, SETTINGS, STUCK, Run
from normswap.train.study.variants import LN, TITLES, VARIANTS
from normswap.train.study.vitals import RECORDS, STATISTICS

_PLACES = 3  # named of those where something began
_RUNTIME = "onnxruntime"  # which everyone has

_CAPTIONS = {
    "loss-curves": "Training loss: the median over the seeds, their range, and each crashed run "
    "with a cross at its end.",
    "accuracy": "Test accuracy against the learning rate.",
    "crashes": "Runs that crashed.",
    "where-crashes-begin": "Crashed runs, aligned at the first record with something out of its "
    "range (step 0); a mark where it was this.",
    "inference-time": "Time of one inference beside LN's, at batch 1 and at batch 8.",
}


def page(comparison: Comparison, figures: Sequence[str], command: str | None) -> str:
    """The whole page. ``figures``: names of SVG files beside it."""
    o = comparison.options
    plain = [result for result in comparison.runs if result.plain]
    rates = sorted({result.run.rate for result in plain})
    seeds = "seeds" if o.study == GRID else "seeds around the first failure and at the best rates"
    lines = ["# LayerNorm against BatchNorm", ""]
    lines += [f"    {command}", ""] if command else []
    if comparison.due:
        due = f"{comparison.due} or more of its runs"
        lines += [f"Not finished: {due} are still to be made; `--resume` goes on.", ""]
    lines += [
        f"{o.model[:1].upper()}{o.model[1:]}; {o.data}, {o.train_samples} samples to "
        f"train on, {o.validation_samples} to choose rates on, {o.test_samples} to test. "
        f"{len(comparison.runs)} runs: {len(o.variants)} variants, {len(rates)} learning rates, "
        f"{o.seeds} {seeds}; "
        f"{o.steps} steps of {o.batch} samples, AdamW, warm-up and cosine, no gradient "
        "clipping, no augmentation. The variants of a seed begin with the same weights and see the "
        f"same batches. {comparison.cpu_seconds / 60:.0f} min of one core; {comparison.machine}.",
        "",
        *best_table(comparison),
        "",
        "Accuracies are the mean and standard deviation over the seeds, on the test samples, in "
        "percent, at the rate with the highest mean on the validation samples, of the rates with "
        "the most seeds. *Running less batch*: how much accuracy changes from BatchNorms with the "
        "statistics of each batch of the test to their running ones, in points, and its worst in "
        "all plain runs. A run "
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
    if comparison.taken_out:
        lines += ["", "## Train with BatchNorm, or take LayerNorm out afterwards?", ""]
        lines += norm_free_table(comparison)
    lines += ["", "## Accuracy by learning rate", "", *rate_table(comparison), ""]
    if len(comparison.runs) > len(plain):
        lines += ["## Other settings", "", *setting_table(comparison), ""]
    if any(result.crashed for result in comparison.runs):
        lines += ["## Where crashes begin", "", *crash_table(comparison), ""]
    if comparison.benches:
        lines += ["## Inference", ""]
        for bench in comparison.benches.values():
            lines += [*time_table(bench), ""]
    for name in figures:
        lines += [f"![{_CAPTIONS[name]}]({name}.svg)", ""]
    return "\n".join(lines)


def best_table(comparison: Comparison) -> list[str]:
    """A row for each variant: what it reaches, how often it crashes, what it costs."""
    lines = [
        "| | best rate | accuracy | against LN (95 %) | running less batch (worst) | crashed "
        "| stable up to | folded exactly | in ONNX | norms left | statistics |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
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
        gaps = [gap for group in groups(comparison.runs, variant) for gap in group.gaps]
        exact = sum(folded.exact and not folded.norms_left for folded in own)
        model = deployed.get(variant)
        cells = [
            VARIANTS[variant],
            f"{best.rate:g}",
            _accuracy(best),
            "" if variant == LN else against,
            f"{np.mean(best.gaps):+.1f} ({min(gaps):+.1f})" if best.gaps else "",
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
    rates = sorted({result.run.rate for result in comparison.runs if result.plain})
    lines = [
        f"| | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"|---|{'---|' * len(rates)}",
    ]
    for variant in comparison.options.variants:
        cells = dict.fromkeys(rates, "")
        for group in groups(comparison.runs, variant):
            crashed = f", {group.crashed} of {len(group.seeds)} crashed" if group.crashed else ""
            cells[group.rate] = f"{_accuracy(group)}{crashed}"
        lines.append(f"| {VARIANTS[variant]} | {' | '.join(cells.values())} |")
    return lines


def norm_free_table(comparison: Comparison) -> list[str]:
    """The best model of each variant and the best LN model's forms without norms, as used."""
    lines = [
        "| | trained | test accuracy | in ONNX | norms left | statistics "
        f"| share of LN's time in {_RUNTIME} |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in (*comparison.deployed, *comparison.taken_out):
        times = [
            f"{ratio.median:.2f} (batch {batch})"
            for batch, bench in comparison.benches.items()
            for result in bench.results
            if (result.model, result.runtime) == (TITLES[model.variant], _RUNTIME)
            and (ratio := result.ratio_in_runtime or result.ratio) is not None
            and model.variant != LN
        ]
        cells = [
            TITLES[model.variant],
            model.run,
            f"{model.accuracy:.1f}",
            f"{model.onnx_accuracy:.1f}",
            str(model.norms),
            f"{model.statistics:,}",
            ", ".join(times),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "The run of each that was best on the validation samples. What LN becomes afterwards is "
        "fitted to training samples, without labels and without training.",
    ]


def _accuracy(group: Group) -> str:
    spread = f" ± {group.deviation:.1f}" if len(group.seeds) > 1 else ""
    return f"{group.mean:.1f}{spread}"


def setting_table(comparison: Comparison) -> list[str]:
    """Each variant at the rates that have runs of other settings: the same seed side by side."""
    other = {(r.run.rate, r.run.seed) for r in comparison.runs if not r.plain}
    used = [s for s in SETTINGS if any(r.run.setting == s for r in comparison.runs)]
    lines = [
        f"| | rate | {' | '.join(SETTINGS[name].title for name in used)} |",
        f"|---|---|{'---|' * len(used)}",
    ]
    results = {result.run: result for result in comparison.runs}
    for variant in comparison.options.variants:
        for rate, seed in sorted(other):
            found = [results.get(Run(variant, rate, seed, name)) for name in used]
            cells = [
                "" if r is None else f"{100 * r.accuracy:.1f}{f', {r.outcome}' * r.crashed}"
                for r in found
            ]
            lines.append(f"| {VARIANTS[variant]} | {rate:g} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Test accuracy of one seed. bfloat16: torch's autocast; where a processor has no bfloat16, "
        "the same roundings of values that are computed in float32.",
    ]


def crash_table(comparison: Comparison) -> list[str]:
    """Each run that crashed, and what left its range first."""
    lines = ["| run | | stopped at step | not finite first | out of range first |"]
    lines += ["|---|---|---|---|---|"]
    for r in comparison.runs:
        if not r.crashed:
            continue
        began = ""
        if r.onset is not None:
            what = ", ".join(STATISTICS[name] for name in r.onset.statistics)
            places = f" ({', '.join(r.onset.places[:_PLACES])})" if r.onset.places else ""
            began = f"step {r.onset.step}: {what}{places}"
        cells = [
            r.run.name,
            r.outcome,
            "" if r.stopped_at is None else str(r.stopped_at),
            r.stopped_norm or "",
            began,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Out of range: more than ten times the median of the records before, for the variance of "
        "an FFN's hidden values and for the gradient norm; below a tenth or above ten, for a "
        "batch variance as a share of the running one; a nat above the median, for the loss; and "
        f"still so at the next record. {RECORDS} records in a whole run.",
    ]


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
            f"{_accuracy(best)} %",
            "" if variant == LN else f"{gap:+.1f}",
            f"{crashed} of {runs}",
            "none" if stable is None else f"{stable:g}",
        )
    parts: list[RenderableType] = [made]
    if comparison.due:
        parts.append(Line(f"{comparison.due} or more runs are due: go on with --resume", "yellow"))
    for finding in comparison.findings:
        verdict = Line(f"{finding.verdict}: ", _COLORS.get(finding.verdict, "yellow"))
        parts.append(Line(f"{finding.claim} ", "bold") + verdict + Line(finding.text))
    return Lines(*parts, Line(f"figures and all runs: {folder}/README.md", "dim"))
