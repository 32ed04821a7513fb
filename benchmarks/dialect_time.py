"""What each dialect of a LayerNorm takes beside the fused operator, at the shapes of ViTs.

    python -m benchmarks.dialect_time [--runtimes NAME ...] [--batches N ...] [--threads N]
        [--rounds N] [--quick] [--json FILE]

in the repository's root. One residual sum and its norm, 197 tokens of ViT-S, B and L, in each
dialect and in ONNX Runtime and OpenVINO, which take turns with the operator: its time, and that of
the others as a ratio to it in the same round, median and quartiles, by model and batch. *error*:
the largest one at rows around 0 and around 100, as a share of the largest output, against float64.
A runtime that is not installed, or that refuses a form, has its reason in the cell.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import normswap as ns
from normswap.graph.graph import Array
from normswap.passes.dialects.channels_first import ChannelsFirst
from normswap.passes.dialects.writing import Dialect
from normswap.passes.registry import passes
from normswap.timing.paired import compare

WIDTHS = {"ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}
TOKENS, OPSET = 197, 17
FUSED = "fused"
_MEANS = (0.0, 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="one width, one batch, 5 rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    widths = dict(list(WIDTHS.items())[:1]) if options.quick else WIDTHS
    batches, rounds = ([1], 5) if options.quick else (options.batches, options.rounds)
    rows = [
        row
        for runtime in options.runtimes
        for name, width in widths.items()
        for batch in batches
        for row in measured(runtime, name, (batch, TOKENS, width), options.threads, rounds)
    ]
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}))
    print(f"{options.threads} threads, {rounds} rounds, {TOKENS} tokens\n")
    print(table(rows))


def measured(
    runtime: str, name: str, shape: tuple[int, ...], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for every dialect in a runtime at one shape."""
    common = {"runtime": runtime, "model": name, "batch": shape[0]}
    try:
        module = importlib.import_module(f"normswap.runtimes.{runtime}")
    except ImportError as error:
        return [common | {"dialect": FUSED, "missing": str(error)}]
    common["runtime"] = module.runtime_name()
    model = norm_of_sum(shape)
    data = [inputs(shape, mean) for mean in _MEANS]
    truths = [model.run(feeds, np.float64)["y"] for feeds in data]
    rows, runs = [], {}
    for word, form in forms(model).items():
        try:
            proto = ir.serde.serialize_model(form.to_onnx_ir())
            run = module.compiled(proto.SerializeToString(), threads)
            errors = [_error(run(f)[0], truth) for f, truth in zip(data, truths, strict=True)]
        except Exception as error:  # runtimes raise what they like
            rows.append(common | {"dialect": word, "missing": module.reason(error)})
            continue
        runs[word] = functools.partial(run, data[0])
        rows.append(common | {"dialect": word, "errors": errors})
    times = compare(runs, FUSED, rounds) if FUSED in runs else {}
    for row in rows:
        if row["dialect"] in times:
            timing = times[row["dialect"]]
            row |= {"us": 1e3 * timing.milliseconds, "ratio": timing.ratio}
            row |= {"low": timing.low, "high": timing.high}
    return rows


def norm_of_sum(shape: tuple[int, ...]) -> ns.Model:
    """s = a + b; y = LayerNorm(s), of ``shape`` [batch, tokens, channels]."""
    random, width = np.random.default_rng(0), shape[-1]
    constants = {
        "weight": random.uniform(0.5, 1.5, width).astype(np.float32),
        "bias": random.standard_normal(width).astype(np.float32),
    }
    make = onnx.helper
    values = {v: make.make_tensor_value_info(v, onnx.TensorProto.FLOAT, shape) for v in "absy"}
    graph = make.make_graph(
        [
            make.make_node("Add", ["a", "b"], ["s"]),
            make.make_node(
                "LayerNormalization", ["s", "weight", "bias"], ["y"], axis=-1, epsilon=1e-6
            ),
        ],
        "norm",
        [values["a"], values["b"]],
        [values["y"], values["s"]],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = make.make_opsetid("", OPSET)
    return ns.load(
        ir.serde.deserialize_model(make.make_model(graph, opset_imports=[opset], ir_version=8))
    )


def forms(model: ns.Model) -> dict[str, ns.Model]:
    """The model as it is, and in every dialect that writes its norm."""
    found = {FUSED: model}
    for word, kind in passes().items():
        if issubclass(kind, Dialect) and kind is not ChannelsFirst:  # of images
            result = ns.swap(model, to=word)
            found |= {word: result.model} if result.done else {}
    return found


def inputs(shape: tuple[int, ...], mean: float) -> dict[str, Array]:
    random = np.random.default_rng(1)
    rows = {name: random.standard_normal(shape).astype(np.float32) for name in "ab"}
    rows["a"] += np.float32(mean)
    return rows


def _error(found: Array, truth: Array) -> float:
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: a line for each dialect in each runtime, a column for each shape."""
    shapes = list(dict.fromkeys((row["model"], row["batch"]) for row in rows))
    heads = [f"{model}, {batch}" for model, batch in shapes]
    columns = ["runtime", "dialect", *heads, "error at 0", "at 100"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for runtime, dialect in dict.fromkeys((row["runtime"], row["dialect"]) for row in rows):
        here = [r for r in rows if (r["runtime"], r["dialect"]) == (runtime, dialect)]
        cells = {(row["model"], row["batch"]): _cell(row) for row in here}
        found = [row["errors"] for row in here if "errors" in row]
        worst = [f"{max(errors):.1e}" for errors in zip(*found, strict=True)] or ["", ""]
        line = [runtime, dialect, *(cells.get(shape, "") for shape in shapes), *worst]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "missing" in row:
        return str(row["missing"])
    if "ratio" not in row:
        return "the operator is refused"
    if row["dialect"] == FUSED:
        return f"{row['us']:.0f} µs"
    return f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})"


if __name__ == "__main__":
    main()
