"""What remains of a model's norms after a swap, counted and timed.

    pip install openvino               # optional
    python -m benchmarks.predicted_time MODEL.onnx DATA [--samples N] [--batch N] [--threads N]
        [--rounds N] [--json FILE]

in the repository's root. The variants take turns in one process, in ONNX Runtime and OpenVINO:

* original: the file. fused: with one operator for each norm.
* rmsnorm: exact, the operator. rmsnorm, product: the same spelled x / sqrt((x x) 1/C + eps) with
  the mean of squares as a product with a constant, for targets without reductions.
* predicted, affine: fitted to DATA and folded.
* no norms: each norm replaced by its input. That is the floor.

*operators* are all nodes of the file; *statistics* those that reduce, take a root or are a norm.
*ratio*: the time by the original's in the same round, median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import normswap as ns
from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.norm_tax import OPENED
from benchmarks.paired import interleaved, ratio
from normswap.graph.graph import Graph

ORIGINAL = "original"
STATISTICS = {"statistic", "root", "normalises"}  # fields of a row of the table of operators


def variants(model: ns.Model, data: Any) -> dict[str, ns.Model]:
    """The model after each swap."""
    exact = ns.swap(model, to="rmsnorm").model
    found = {
        ORIGINAL: model,
        "fused": ns.swap(model, to="fused").model,
        "rmsnorm": exact,
        "rmsnorm, product": as_products(exact),
    }
    for to in ("predicted", "affine"):
        found[to] = ns.fold(ns.swap(model, to=to, data=data).model).model
    return found | {"no norms": without_norms(model)}


def as_products(model: ns.Model) -> ns.Model:
    """The RMSNorms over the last axis with their mean of squares as a product."""
    result = model.copy()
    graph = result.graph
    for site in model.sites:
        x, old = graph.value(site.input), graph.value(site.output)
        if site.kind != "rms_norm" or site.axes != (len(x.shape or ()) - 1,):
            continue
        _spell(graph, site, x, old)
    graph.prune()
    return result


def _spell(graph: Graph, site: ns.Site, x: Any, old: Any) -> None:
    size = site.normalized_shape[0]

    def insert(op: str, inputs: list[Any], what: str) -> Any:
        return graph.insert(op, inputs, name=f"{site.name}.{what}", like=old.producer)

    def constant(array: Any, what: str) -> Any:
        return graph.add_constant(np.asarray(array, x.dtype), f"{site.name}.{what}")

    mean = insert(
        "MatMul",
        [insert("Mul", [x, x], "square"), constant(np.full((size, 1), 1 / size), "c")],
        "m",
    )
    root = insert("Sqrt", [insert("Add", [mean, constant(site.epsilon, "epsilon")], "sum")], "root")
    value = insert("Mul", [x, insert("Div", [constant(1.0, "one"), root], "scale")], "product")
    if site.weight is not None:
        value = insert("Mul", [value, constant(site.weight, "weight")], "scaled")
    graph.replace_uses(old, value)


def without_norms(model: ns.Model) -> ns.Model:
    floor = model.copy()
    for site in reversed([s for s in model.sites if s.kind != "batch_norm"]):
        floor.graph.replace_uses(floor.graph.value(site.output), floor.graph.value(site.input))
    floor.graph.prune()
    return floor


def counted(model: ns.Model) -> dict[str, int]:
    """Operators, those that compute statistics, and multiply-adds of products with constants for
    the example inputs."""
    nodes = model.graph.nodes
    statistics = [n for n in nodes if any(getattr(n.operator, field) for field in STATISTICS)]
    products = 0
    for node in nodes:
        weight = node.input(1) if node.operator.product == "matrix" else None
        if weight is not None and weight.is_constant and weight.shape and node.output.shape:
            products += int(np.prod(node.output.shape)) * weight.shape[-2]
    return {"operators": len(nodes), "statistics": len(statistics), "multiply_adds": products}


def figures(times: dict[str, dict[str, list[float]]]) -> Figures:
    """What a record keeps of the seconds in each runtime."""
    return {
        f"{runtime}: {name}: ratio": Figure.of(ratio(seconds, taken[ORIGINAL]), "")
        for runtime, taken in times.items()
        for name, seconds in taken.items()
        if name != ORIGINAL
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_record_option(parser)
    options = parser.parse_args()
    model = ns.load(options.model)
    data = ns.load_data(options.data, model, options.samples)
    made = variants(model, data)
    feeds = next(data.batches(options.batch))
    counts = {name: counted(each) for name, each in made.items()}
    found: dict[str, Any] = {"counts": counts, "times": {}}
    print("| variant | operators | statistics | multiply-adds of products |\n|---|---|---|---|")
    for name, count in counts.items():
        print(f"| {name} | {' | '.join(f'{n:,}' for n in count.values())} |")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(made)}
        for name, each in made.items():
            ns.save(each, files[name])
        for runtime, session in OPENED.items():
            runs: dict[str, Callable[[], float]] = {}
            try:
                for name, file in files.items():
                    runs[name] = _timed(session(file, options.threads), feeds)
            except Exception as error:  # a runtime that is not installed, or lacks an operator
                print(f"\n{runtime}: {str(error).splitlines()[0]}")
                continue
            taken = interleaved(runs, options.rounds, 5)
            print(f"\n| {runtime}, batch {options.batch} | ms | ratio |\n|---|---|---|")
            for name, seconds in taken.items():
                middle = 1000 * float(np.median(seconds))
                print(f"| {name} | {middle:.1f} | {ratio(seconds, taken[ORIGINAL])} |", flush=True)
            found["times"][runtime] = taken
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    write_record(options.record, "predicted_time", figures(found["times"]))


def _timed(run: Callable[[Any], object], feeds: Any) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run(feeds)
        return time.perf_counter() - start

    return once


if __name__ == "__main__":
    main()
