"""How much of their norms' own time whole torch models keep after each exact swap.

    python -m benchmarks.norm_time [--models NAME ...] [--batches N ...] [--threads N] [--rounds N]
        [--quick] [--json FILE]

in the repository's root. ``norm_tax`` times whole models, of which the norms take so little on a
CPU that what a swap leaves of it is lost in the noise. Here torch's profiler times the norms and
the additions inside of the same models (original, swapped, and without norms), which take turns;
with the default allocator, and with one that keeps its memory, each in a process of its own.

*norms*: a pass's time in norms and additions, in the kernels that do both too, less that of the
model without norms. *share*: of the original's time. *left*: the norms' time by the original's in
the same round, median and quartiles: what is left of the norm tax.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.history.record import write_record
from benchmarks.norm_tax import (
    DEFAULT_SWAPS,
    FLOOR,
    MODULE,
    ORIGINAL,
    Case,
    argument_parser,
    figures,
    measured_alone,
    shown,
    torch_runs,
    torch_variants,
)
from benchmarks.paired import interleaved, spread

ALLOCATORS = ("torch", "torch, keeping allocator")
COUNTED = ("aten::layer_norm", "aten::rms_norm", "aten::add", "aten::add_")
WARM_UP = 3


def seconds_in_norms(run: Callable[[], object]) -> tuple[float, float]:
    """Of one run: in norms and additions, and in all."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.events() or []
    inside = sum(e.cpu_time_total for e in events if _is_counted(e) and not _is_inside(e))
    return inside / 1e6, sum(e.self_cpu_time_total for e in events) / 1e6


def _is_counted(event: Any) -> bool:
    return event.name in COUNTED or event.name.startswith("normswap::")


def _is_inside(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if _is_counted(parent):
            return True
        parent = parent.cpu_parent
    return False


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for every batch and variant."""
    variants, missing = torch_variants(case)
    del variants[MODULE]
    common = {"model": case.model, "runtime": case.runtime}
    rows = [common | {"variant": name, "missing": why} for name, why in missing.items()]
    for batch in case.batches:
        runs = torch_runs(variants, batch)
        whole: list[float] = []  # of the original

        def inside(name: str, run: Callable[[], object], whole: list[float] = whole) -> float:
            norms, total = seconds_in_norms(run)
            if name == ORIGINAL:
                whole.append(total)
            return norms

        timed = {n: (lambda n=n, r=r: inside(n, r)) for n, r in runs.items()}
        found = interleaved(timed, case.rounds, WARM_UP)
        floor = found.pop(FLOOR)
        tax = [a - b for a, b in zip(found[ORIGINAL], floor, strict=True)]
        for name, seconds in found.items():
            own = [a - b for a, b in zip(seconds, floor, strict=True)]
            left = spread([a / b for a, b in zip(own, tax, strict=True)])
            share = statistics.median(own) / statistics.median(whole)
            rows.append(
                common
                | {"batch": batch, "variant": name, "us": 1e6 * statistics.median(own)}
                | {"share": share, "left": asdict(left)}
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| model | runtime | batch | variant | norms | share | left |", "|" + "---|" * 7]
    for row in rows:
        cells = [row["model"], row["runtime"], str(row.get("batch", "")), row["variant"]]
        if "missing" in row:
            cells += ["", "", row["missing"]]
        else:
            cells += [f"{row['us']:.0f} µs", f"{100 * row['share']:.1f} %", shown(row["left"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = argument_parser(str(__doc__)).parse_args()
    if options.task:
        given, result = options.task
        Path(result).write_text(json.dumps(measure(Case(**json.loads(given)))))
        return

    from normswap.report.progress import Progress

    if options.quick:
        options.models, options.batches, options.rounds = options.models[:1], [1], 5
    shared = (options.batches, list(DEFAULT_SWAPS), options.rounds, options.threads, 14)
    cases = [Case(model, kind, *shared) for model in options.models for kind in ALLOCATORS]
    rows: list[dict[str, Any]] = []
    with Progress(lines=True) as progress:
        for done, case in enumerate(cases, start=1):
            progress(done, len(cases), f"{case.model} in {case.runtime}")
            rows += measured_alone("norm_time", case)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}))
    print(f"{options.threads} threads, {options.rounds} rounds\n")
    print(table(rows))
    write_record(options.record, "norm_time", figures(rows, "left"))


if __name__ == "__main__":
    main()
