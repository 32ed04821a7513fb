"""The exact swaps on the zoo's ONNX files: never slower than the input, and the same function?

    pip install openvino               # optional
    python -m benchmarks.exact_swaps [--names NAME ...] [--forms FORM ...] [--runtimes RUNTIME ...]
        [--threads N] [--rounds N] [--files FOLDER] [--quick] [--json FILE]

in the repository's root, on the files of ``tests/zoo`` at the sizes that they have there. Each swap
is made for the runtime in which it is timed (with ``--tune``: by what was measured there); beside
them what onnxruntime.transformers' optimizer makes of the same file, in ONNX Runtime.

*ratio*: the time by that of the input file in the same round, the median over rounds, and its
quartiles. *slower*: files whose lower quartile is above 1.02. *inexact*: files that break the exact
contract of ``normswap validate`` against the input. *failed*: the tool raised, or its file does not
run. *as it was*: files in which there was nothing to do, which are not timed. Every file has a
process that may die.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.norm_tax import OPENED, TARGETS
from benchmarks.paired import Spread, interleaved, ratio
from benchmarks.peers import Case, Guard, first_line

SECONDS = 600  # for one file
SHORTEST = 4e-3  # seconds of one measurement: short runs are repeated
SLOWER = 1.02
WARM_UP = 2
FORMS = ("torchscript-14", "torchscript-17", "dynamo-20", "torchscript-14-half")
INPUT, PEER = "input", "onnxruntime.transformers"
SWAPS = ("fused", "fused --tune", "rmsnorm")


def compared(case: Case, runtime: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for every tool. Raises whatever the runtime raises on the input."""
    import onnx

    import normswap as ns

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "input.onnx"
        onnx.save(case.proto, source)
        model = ns.load(source)
        runs = {INPUT: _run(source, case, runtime, threads)}
        tools = (*SWAPS, PEER) if runtime == "onnxruntime" else SWAPS
        for tool in tools:
            row: dict[str, Any] = {"tool": tool}
            rows.append(row)
            try:
                output = _written(tool, model, source, case, runtime)
                if output is None:
                    row["unchanged"] = True
                    continue
                runs[tool] = _run(output, case, runtime, threads)
                row |= _contract(model, ns.load(output))
            except Exception as error:  # of any library
                row["failed"] = f"{type(error).__name__}: {first_line(error)}"
                runs.pop(tool, None)
        found = _timed(runs, rounds)
    for row in rows:
        if row["tool"] in found:
            row["ms"] = 1000 * statistics.median(found[row["tool"]])
            row["ratio"] = asdict(ratio(found[row["tool"]], found[INPUT]))
    return rows


def _written(tool: str, model: Any, source: Path, case: Case, runtime: str) -> Path | None:
    """The file that a tool makes of ``model``, which is that of ``source``; None for the same."""
    import normswap as ns

    output = source.with_name(f"{tool}.onnx")
    if tool == PEER:
        from onnxruntime.transformers.optimizer import optimize_model

        optimize_model(str(source), model_type=case.family).save_model_to_file(str(output))
        return output
    made_for = ns.Lowering(target=TARGETS[runtime], tune=tool == "fused --tune")
    if tool == "rmsnorm":
        result = ns.swap(model, to=tool)
    else:
        result = ns.swap(model, to="fused", lowering=made_for)
    if not result.modified:
        return None
    ns.save(result.model, output)
    return output


def _contract(reference: Any, candidate: Any) -> dict[str, Any]:
    import normswap as ns

    report = ns.validate(reference, candidate)
    broken = [finding.message for finding in report.findings if finding.fatal]
    return {"exact": report.passed, "broken": broken[0] if broken else ""}


def _run(file: Path, case: Case, runtime: str, threads: int) -> Callable[[], object]:
    import onnx

    taken = {i.name for i in onnx.load(file).graph.input}
    feeds = {name: array for name, array in case.probes[0][0].items() if name in taken}
    opened = OPENED[runtime](file, threads)
    opened(feeds)
    return lambda: opened(feeds)


def _timed(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    start = time.perf_counter()
    runs[INPUT]()
    repeats = max(1, round(SHORTEST / (time.perf_counter() - start)))

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats

        return seconds

    return interleaved({name: timed(run) for name, run in runs.items()}, rounds, WARM_UP)


# -- the command ---------------------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| runtime | tool | files | as it was | failed | inexact | slower | ratio | worst ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for runtime, tool in dict.fromkeys((r["runtime"], r["tool"]) for r in rows if "tool" in r):
        own = [r for r in rows if (r["runtime"], r.get("tool")) == (runtime, tool)]
        timed = [r for r in own if "ratio" in r]
        worst = max(timed, key=lambda r: r["ratio"]["low"], default=None)
        cells = [
            *(runtime, tool, len(own), sum("unchanged" in r for r in own)),
            sum("failed" in r for r in own),
            sum(not r.get("exact", True) for r in own),
            sum(r["ratio"]["low"] > SLOWER for r in timed),
            f"{statistics.median(r['ratio']['median'] for r in timed):.3f}" if timed else "",
            f"{Spread(**worst['ratio'])} {worst['name']} {worst['form']}" if worst else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def details(rows: Sequence[dict[str, Any]]) -> str:
    """What is slower, inexact or failed, in Markdown."""
    lines = ["| runtime | tool | file | ratio | problem |", "|---|---|---|---|---|"]
    for row in rows:
        slow = "ratio" in row and row["ratio"]["low"] > SLOWER
        problem = row.get("failed") or row.get("broken") or row.get("problem") or ""
        if slow or problem:
            shown = str(Spread(**row["ratio"])) if "ratio" in row else ""
            cells = [row["runtime"], row.get("tool", INPUT), f"{row['name']} {row['form']}"]
            lines.append(f"| {' | '.join([*cells, shown, problem.replace('|', '/')])} |")
    return "\n".join(lines)


def figures(rows: Sequence[dict[str, Any]]) -> Figures:
    """What a record keeps of ``rows``."""
    return {
        f"{row['runtime']}: {row['tool']}: {row['name']} {row['form']}": Figure.of(
            Spread(**row["ratio"]), ""
        )
        for row in rows
        if "ratio" in row and row["tool"] != INPUT
    }


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.located_norms import zoo_cases
    from normswap.report.progress import Progress
    from tests.zoo.exports import ONNX_FORMS
    from tests.zoo.models import FAMILIES

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(FAMILIES))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=ONNX_FORMS)
    parser.add_argument("--runtimes", nargs="+", default=list(OPENED), choices=OPENED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--files", type=Path, help="a folder to keep the exported files in")
    parser.add_argument("--quick", action="store_true", help="two models, one form, nine rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    add_record_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.names, options.forms, options.rounds = options.names[:2], FORMS[:1], 9
    if options.files:
        options.files.mkdir(parents=True, exist_ok=True)
    installed = bool(importlib.util.find_spec("openvino"))
    runtimes = [r for r in options.runtimes if r != "openvino" or installed]
    rows: list[dict[str, Any]] = []
    total = len(options.names) * len(options.forms)
    cases = zoo_cases(options.names, options.forms, options.files)
    with Progress(lines=True) as progress, Guard(compared, SECONDS) as guard:
        for done, case in enumerate(cases, start=1):
            if isinstance(case, tuple):
                name, form, why = case
                rows.append({"name": name, "form": form, "not exported": why})
                continue
            progress(done, total, f"{case.form} {case.name}")
            for runtime in runtimes:
                found, problem = guard(case, runtime, options.rounds, options.threads)
                common = {"name": case.name, "form": case.form, "runtime": runtime}
                rows += [common | row for row in found or [{"problem": problem}]]
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    print(f"{options.threads} threads, {options.rounds} rounds\n")
    measured = [row for row in rows if "runtime" in row]
    print(summary(measured), details(measured), sep="\n\n")
    write_record(options.record, "exact_swaps", figures(measured))
    if not installed and "openvino" in options.runtimes:
        print("\nopenvino is not installed.")


if __name__ == "__main__":
    main()
