"""AutoCast and ONNX Runtime's float16 converter beside ``rescale``, on planted overflow.

    python -m benchmarks.half_converters [--only KIND ...] [--python PYTHON] [--json FILE]

in the repository's root. The ONNX models of ``planted_overflow`` go to NVIDIA's AutoCast (with the
same 200 samples as calibration), to ``onnxruntime.transformers.float16``, both as they are by
default but with inputs and outputs kept, and through ``--to rescale`` and ``--dtype float16``. The
two are installed into an environment that is made for it and deleted, several GB since modelopt
needs torch; ``--python`` names the interpreter of one that is there already.

Of every result: the operators that yield float32, how many of them are products of layers or
attentions, the casts, and the largest error in simulated float16 against the planted model in
float32, by the largest output, or *not finite*. What a file computes in float32 is not rounded.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import normswap as ns
from benchmarks.planted_overflow import (
    FOLDERS,
    KINDS,
    SAMPLES,
    TESTED,
    error_in_half,
    exported,
    feeds_of,
)
from normswap.graph.graph import Array
from normswap.io.sources.huggingface import huggingface_source

REQUIREMENTS = (
    "nvidia-modelopt==0.47.0",
    # what its extra 'onnx' asks for, but for GPUs
    *("onnx~=1.21.0", "onnxruntime~=1.24.2", "onnxconverter-common~=1.16.0"),
    *("onnx-graphsurgeon>=0.6.1", "onnxslim>=0.1.76", "polygraphy>=0.53.4"),
    *("onnxscript", "lief", "cppimport", "ml_dtypes"),
)
WORKER = Path(__file__).with_name("other_converters.py")
WAYS = {"AutoCast": "autocast.onnx", "ONNX Runtime": "ort.onnx", "rescale": "rescale.onnx"}


@dataclass(frozen=True)
class Row:
    """A model that was converted. ``wide``: operators that yield float32, casts left out;
    ``products``: those of them that are products. ``error``: None where it is not finite. ``says``:
    why there is no result."""

    model: str
    kind: str
    way: str
    operators: int
    wide: int
    products: int
    casts: int
    error: float | None
    says: str = ""


@dataclass(frozen=True)
class Case:
    """A planted model and where its files are."""

    model: str
    kind: str
    planted: ns.Model
    folder: Path


def cases(kinds: Sequence[str], folder: Path) -> list[Case]:
    """Writes the planted models, calibration data beside them, and what normswap makes of them."""
    made = []
    for name, place in FOLDERS.items():
        source = huggingface_source(str(place))
        data = feeds_of(name, 0, SAMPLES, True)
        for number, kind in enumerate(kinds):
            module = copy.deepcopy(source.module)
            with torch.no_grad():
                KINDS[kind](module)
            own = folder / f"{name}-{number}"
            (own / "data").mkdir(parents=True)
            model = exported(replace(source, module=module), own / "model.onnx")
            np.savez(own / "data" / "calibration.npz", **_complete(model, data))
            rescaled = ns.swap(model, ns.Rescale(), data=data).model
            ns.save(ns.convert(rescaled, "float16").model, own / WAYS["rescale"])
            made.append(Case(name, kind, model, own))
    return made


def _complete(model: ns.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """With a mask of ones for the texts."""
    given = {spec.name: feeds[spec.name] for spec in model.inputs if spec.name in feeds}
    ones = [spec for spec in model.inputs if spec.name not in given]
    return given | {s.name: np.ones(feeds["input_ids"].shape, s.dtype) for s in ones}


def convert_elsewhere(python: Path | None, folder: Path) -> dict[str, str]:
    """Runs both converters on all of ``folder``; their versions."""
    with tempfile.TemporaryDirectory() as place:
        if python is None:
            venv.create(place, with_pip=True)
            python = Path(place, "bin", "python")
            install = [python, "-m", "pip", "install", "-q", "--no-compile", *REQUIREMENTS]
            subprocess.run(install, check=True)
        command = [python, "-I", WORKER, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    versions: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return versions


def measured(case: Case, way: str) -> Row:
    """The row of one result."""
    path = case.folder / WAYS[way]
    failure = path.with_name(f"{path.name}.error")
    if failure.exists():
        return Row(case.model, case.kind, way, 0, 0, 0, 0, None, failure.read_text("utf-8"))
    try:
        model = ns.load(path)
        error = error_in_half(model, case.planted, feeds_of(case.model, 0, TESTED, False))
    except ns.NormswapError as refusal:
        return Row(case.model, case.kind, way, 0, 0, 0, 0, None, str(refusal))
    nodes = [node for node in model.graph.nodes if node.dynamic_inputs()]
    casts = sum(node.op == "Cast" for node in nodes)
    wide = [n for n in nodes if n.op != "Cast" and n.output.dtype == np.float32]
    products = sum(bool(node.operator.product) for node in wide)
    return Row(case.model, case.kind, way, len(nodes), len(wide), products, casts, error)


def table(rows: Sequence[Row]) -> str:
    """In Markdown: a line for each model, each way's float32 operators, casts and error."""
    lines = [
        f"| planted | model | {' | '.join(WAYS)} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    by_case: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        error = "not finite" if row.error is None else f"{row.error:.1e}"
        cell = row.says or f"{row.wide} ({row.products}), {row.casts} casts, {error}"
        by_case.setdefault((row.kind, row.model), {})[row.way] = cell
    for (kind, model), cells in by_case.items():
        lines.append(f"| {kind} | {model} | {' | '.join(cells[way] for way in WAYS)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--python", type=Path, help="an environment with both, not to be made")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = cases(options.only, Path(folder))
        versions = convert_elsewhere(options.python, Path(folder))
        rows = []
        for case in models:
            for way in WAYS:
                rows.append(measured(case, way))
                print(*asdict(rows[-1]).values(), sep=" | ", file=sys.stderr, flush=True)
    if options.json:
        held = {"versions": versions, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(held, indent=1))
    print(", ".join(f"{name} {version}" for name, version in versions.items()), end="\n\n")
    print(table(rows))


if __name__ == "__main__":
    main()
