"""Time and memory of loading a model and locating its norms, against the number of its nodes.

    python -m benchmarks.locating_cost [--depths N ...] [--graphs onnx fx] [--runs N]
        [--json FILE] [--markdown]
    python -m benchmarks.locating_cost --model FILE [--runs N] [--json FILE] [--markdown]

in the repository's root. timm's ``vit_tiny_patch16_224`` at several depths, with its LayerNorms
spelled out: as TorchScript's exporter writes them at opset 14 (``onnx``), and captured by
torch.export with the norms written in elementary operators (``fx``). With ``--model``, one file.

Each model is built in one process and measured in another. *locate s* is the median of the runs.
*memory* is the largest resident size, in MiB: of Python with normswap imported, with the model
loaded, and with its norms located. The exponent is the slope of log(time) over log(nodes): 1 is
linear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from normswap.report.progress import Progress

DEPTHS = (2, 6, 12, 24, 48, 96)
SUFFIX = {"onnx": ".onnx", "fx": ".pt2"}
COLUMNS = {
    "graph": "graph",
    "depth": "depth",
    "nodes": "nodes",
    "sites": "sites",
    "load_s": "load s",
    "locate_s": "locate s",
    "per_node_us": "locate µs/node",
    "imported_mib": "memory: imported",
    "loaded_mib": "loaded",
    "located_mib": "located",
}


def built(graph: str, depth: int, path: Path) -> None:
    """Writes the ViT of ``depth`` blocks to ``path``."""
    from normswap.io.sources.packages import ensure_torchvision_importable

    ensure_torchvision_importable()
    import timm
    import torch

    import normswap
    from normswap.demo.spelled_out import spell_out

    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", depth=depth).eval()
    image = torch.randn(2, 3, 224, 224)
    if graph == "fx":
        model = normswap.load(
            spell_out(module), example_inputs=(image,), dynamic_axes={"x": {0: "batch"}}
        )
        normswap.save(model, path)
        return
    with torch.no_grad():
        torch.onnx.export(
            module,
            (image,),
            str(path),
            dynamo=False,
            opset_version=14,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "batch"}},
        )


def measured(path: Path, runs: int) -> dict[str, Any]:
    """One file's cost, for a process that has done nothing else."""
    import normswap
    from normswap.norms import locate  # of a graph: a model keeps what was located

    imported = _peak()
    model, load_s = _timed(lambda: normswap.load(path))
    loaded = _peak()
    location, first_s = _timed(lambda: locate(model.graph))
    located = _peak()
    seconds = [first_s, *(_timed(lambda: locate(model.graph))[1] for _ in range(runs - 1))]
    nodes, median = len(model.graph.nodes), statistics.median(seconds)
    return {
        "nodes": nodes,
        "sites": len(location.sites),
        "load_s": round(load_s, 3),
        "locate_s": round(median, 4),
        "locate_runs_s": [round(s, 4) for s in seconds],
        "per_node_us": round(1e6 * median / nodes, 1),
        "imported_mib": imported,
        "loaded_mib": loaded,
        "located_mib": located,
        "megabytes": round(path.stat().st_size / 1e6, 1),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _peak() -> int:
    """The largest resident size so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / (2**20 if sys.platform == "darwin" else 2**10))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process.

    Its peak starts at this process's size, so no model may ever be loaded here.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_quietly, function, *arguments).result()


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    import warnings

    warnings.simplefilter("ignore")
    return function(*arguments)


def exponent(rows: Sequence[dict[str, Any]], key: str) -> float:
    """The slope of log(``key``) over log(nodes)."""
    import numpy as np

    nodes, values = (np.log([row[name] for row in rows]) for name in ("nodes", key))
    return float(np.polyfit(nodes, values, 1)[0])


def _row(graph: str, depth: int, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"vit{SUFFIX[graph]}"
        alone(built, graph, depth, path)
        return {"graph": graph, "depth": depth} | alone(measured, path, runs)


def figures(rows: Sequence[dict[str, Any]]) -> Figures:
    """What a record keeps of ``rows``."""
    found = {}
    for row in rows:
        name = f"{row['graph']} {row.get('depth', '')}".strip()
        found[f"{name}: load"] = Figure.of([row["load_s"]], "s")
        found[f"{name}: locate"] = Figure.of(row["locate_runs_s"], "s")
        found[f"{name}: memory, located"] = Figure.of([row["located_mib"]], "MiB")
    return found


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, help="measure this file instead")
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS))
    parser.add_argument("--graphs", nargs="*", default=list(SUFFIX), choices=SUFFIX)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    add_record_option(parser)
    options = parser.parse_args()
    if options.model:
        rows = [{"graph": options.model.name} | alone(measured, options.model, options.runs)]
    else:
        todo, rows = [(g, d) for g in options.graphs for d in options.depths], []
        with Progress(lines=True) as progress:
            for done, (graph, depth) in enumerate(todo, start=1):
                progress(done, len(todo), f"{graph}, depth {depth}")
                rows.append(_row(graph, depth, options.runs))
    slopes = {
        graph: {key: round(exponent(some, key), 3) for key in ("load_s", "locate_s")}
        for graph in dict.fromkeys(row["graph"] for row in rows)
        if len(some := [row for row in rows if row["graph"] == graph]) > 1
    }
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "exponents": slopes}, indent=1))
    _show(rows, slopes, options.markdown)
    write_record(options.record, "locating_cost", figures(rows))


def _show(rows: list[dict[str, Any]], slopes: dict[str, dict[str, float]], markdown: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "loading a model and locating its norms"
    table = Table(title=title, box=box.MARKDOWN if markdown else box.HEAVY_HEAD)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in COLUMNS))
    for graph, found in slopes.items():
        cells = {"graph": f"{graph}, exponent"} | {k: f"{v:.2f}" for k, v in found.items()}
        table.add_row(*(cells.get(key, "") for key in COLUMNS))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
