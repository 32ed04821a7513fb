"""Time and memory of ``normswap swap --to fused`` on a whole CLIP, beside other tools.

    pip install onnxslim onnxsim       # both optional
    python -m benchmarks.tool [--model NAME | --file FILE.onnx] [--layouts inline external]
        [--tools TOOL ...] [--rounds N] [--quick] [--folder FOLDER] [--json FILE]

in the repository's root. By default open_clip's ViT-L-14 with random weights, both towers in one
file of 1.7 GB at opset 14, written by TorchScript's exporter: 75 decomposed LayerNorms. ``inline``
has the weights in the file, ``external`` in one file beside it; each tool writes what it reads.

Every run is a process of its own. The tools take turns, after a run that does not count. *ratio*:
the time by that of onnx_ir's load and save in the same round, the quartiles in brackets. *CPU s*:
the time that all threads of the process took. *MiB*: its largest resident size, with its ratio.
*norms*: the norm operators in the written file. normswap has its files on disk before it ends, the
others leave that to the system: between the runs all is written back. ``--slow``: the rounds of
the tools that take a minute and more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.measured_process import Cost, measured
from benchmarks.paired import ratio, turns

MODEL, QUICK_MODEL = "ViT-L-14", "ViT-B-32"
OPSET = 14
LAYOUTS = ("inline", "external")
BARE, SWAP = "onnx_ir load + save", "normswap swap --to fused"
PACKAGES = {"onnxslim": "onnxslim", "onnxsim": "onnxsim"}  # that may not be installed

# -- the tools, each as it is called in its own process ------------------------------------------


def _onnx_ir(source: Path, output: Path, external: bool) -> None:
    import onnx_ir as ir

    ir.save(ir.load(source), output, external_data=f"{output.name}.data" if external else None)


def _onnxruntime(source: Path, output: Path, external: bool) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    options.optimized_model_filepath = str(output)
    if external:
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{output.name}.data")
    onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])


def _onnxruntime_transformers(source: Path, output: Path, external: bool) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), model_type="clip").save_model_to_file(str(output), external)


def _onnxslim(source: Path, output: Path, external: bool) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(output), save_as_external_data=external)


def _onnxsim(source: Path, output: Path, external: bool) -> None:
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(str(source))
    onnx.save(model, output, save_as_external_data=external, location=f"{output.name}.data")


LIBRARIES: dict[str, Callable[[Path, Path, bool], None]] = {
    BARE: _onnx_ir,
    "onnxruntime C++, extended": _onnxruntime,
    "onnxruntime.transformers": _onnxruntime_transformers,
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
}
SLOW = ("onnxruntime.transformers", "onnxslim", "onnxsim")
TOOLS = (BARE, SWAP, *(name for name in LIBRARIES if name != BARE))


def _command(tool: str, source: Path, output: Path, layout: str) -> list[str]:
    if tool == SWAP:
        program = [sys.executable, "-m", "normswap_cli.main"]
        return [*program, "swap", str(source), "--to", "fused", "-o", str(output)]
    return own_command("tool", tool, source, output, layout)


def own_command(task: str, *arguments: object) -> list[str]:
    """The command that does a task of this file in a new process."""
    return [sys.executable, "-m", "benchmarks.tool", "--task", task, *map(str, arguments)]


# -- tasks for a new process ---------------------------------------------------------------------


def _make(name: str, path: str) -> None:
    """Writes open_clip's model, both towers, with its weights inline."""
    import warnings

    from normswap.io.sources.open_clip import open_clip_source

    source = open_clip_source(f"{name}?pretrained=false")
    import torch

    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        torch.onnx.export(
            source.module,
            source.args,
            path,
            kwargs=source.kwargs,
            opset_version=OPSET,
            input_names=list(source.dynamic_axes),
            output_names=list(source.output_names),
            dynamic_axes=source.dynamic_axes,
            dynamo=False,
        )


def _tool(tool: str, source: str, output: str, layout: str) -> None:
    LIBRARIES[tool](Path(source), Path(output), layout == "external")


def _count(path: str, result: str) -> None:
    """The norm operators of a file, by name."""
    from collections import Counter

    import onnx

    from benchmarks.peers import OPERATORS

    graph = onnx.load(path, load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node if node.op_type in OPERATORS)
    Path(result).write_text(json.dumps(found))


TASKS: dict[str, Callable[..., None]] = {"make": _make, "tool": _tool, "count": _count}

# -- measuring -----------------------------------------------------------------------------------


def _needed(task: str, *arguments: object) -> None:
    cost = measured(own_command(task, *arguments))
    if cost.error:
        sys.exit(f"{task} {' '.join(map(str, arguments))}: {cost.error}")


def _rows(
    layout: str, source: Path, tools: Sequence[str], rounds: dict[str, int], folder: Path, tell: Any
) -> list[dict[str, Any]]:
    costs: dict[str, list[Cost]] = {tool: [] for tool in tools}
    norms: dict[str, dict[str, int]] = {}
    failed: dict[str, str] = {}
    order = [BARE, *(t for t in turns(tools, max(rounds.values())))]
    left = dict(rounds)
    for number, tool in enumerate(order):
        if number and (tool in failed or not left[tool]):
            continue
        tell(f"{layout}: {tool}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / "output.onnx"
            cost = measured(_command(tool, source, output, layout))
            if cost.error:
                failed[tool] = cost.error
                continue
            if number == 0:
                continue  # the file is in the system's cache from here on
            if tool not in norms:
                counted = Path(scratch) / "norms.json"
                _needed("count", output, counted)
                norms[tool] = json.loads(counted.read_text())
        os.sync()
        costs[tool].append(cost)
        left[tool] -= 1
    return [
        {
            "layout": layout,
            "tool": tool,
            "norms": norms.get(tool, {}),
            "failed": failed.get(tool, ""),
            "seconds": [round(c.seconds, 2) for c in costs[tool]],
            "cpu_seconds": [round(c.cpu_seconds, 2) for c in costs[tool]],
            "mib": [round(c.mib) for c in costs[tool]],
        }
        for tool in tools
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| file | tool | s | ratio | CPU s | MiB | ratio | norms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bare = {row["layout"]: row for row in rows if row["tool"] == BARE}
    for row in rows:
        base = bare[row["layout"]]
        cells = [row["layout"], row["tool"]]
        if row["failed"]:
            lines.append(f"| {' | '.join(cells)} | {row['failed']} | | | | | |")
            continue
        seconds, mib = row["seconds"], row["mib"]
        cells += [
            f"{statistics.median(seconds):.1f}",
            str(ratio(seconds, base["seconds"][: len(seconds)])),
            f"{statistics.median(row['cpu_seconds']):.1f}",
            f"{statistics.median(mib):.0f}",
            f"{statistics.median(mib) / statistics.median(base['mib']):.2f}",
            ", ".join(f"{n} {op}" for op, n in row["norms"].items()) or "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(rows: Sequence[dict[str, Any]]) -> Figures:
    """What a record keeps of ``rows``."""
    return {
        f"{row['layout']}: {row['tool']}: {name}": Figure.of(row[key], unit)
        for row in rows
        if row["seconds"]
        for key, name, unit in (("seconds", "time", "s"), ("mib", "memory", "MiB"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="of open_clip; ViT-L-14, with --quick ViT-B-32")
    parser.add_argument("--file", type=Path, help="a file with its weights inline, to use instead")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow", type=int, default=1, help="rounds of the slow tools")
    parser.add_argument("--quick", action="store_true", help="a smaller model, two rounds, no slow")
    parser.add_argument("--folder", type=Path, help="where the files go for a while (10 GB)")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    add_record_option(parser)
    options = parser.parse_args()
    if options.task:
        TASKS[options.task[0]](*options.task[1:])
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)

    from normswap.report.progress import Progress

    missing = {t for t, package in PACKAGES.items() if not importlib.util.find_spec(package)}
    wanted = [BARE, *(t for t in TOOLS if t in options.tools and t != BARE)]
    if options.quick:
        options.rounds, options.slow = 2, 0
    rounds = {t: min(options.slow if t in SLOW else options.rounds, options.rounds) for t in wanted}
    tools = [t for t in wanted if t not in missing and rounds[t]]
    rounds = {t: rounds[t] for t in tools}
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as scratch,
        Progress(lines=True) as progress,
    ):
        folder, done = Path(scratch), 0
        total = len(options.layouts) * (sum(rounds.values()) + 1)

        def tell(what: str) -> None:
            nonlocal done
            done += 1
            progress(done, total, what)

        inline = options.file or folder / "clip.onnx"
        if not options.file:
            name = options.model or (QUICK_MODEL if options.quick else MODEL)
            progress(0, total, f"exporting {name}")
            _needed("make", name, inline)
        for layout in options.layouts:
            source = inline
            if layout == "external":
                source = folder / "external.onnx"
                _needed("tool", BARE, inline, source, layout)
            rows += _rows(layout, source, tools, rounds, folder, tell)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    write_record(options.record, "tool", figures(rows))
    for tool in wanted:
        if tool in missing:
            print(f"\n{tool} is not installed.")


if __name__ == "__main__":
    main()
