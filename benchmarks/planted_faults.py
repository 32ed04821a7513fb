"""How many planted faults three ways of comparing two models catch.

    python -m benchmarks.planted_faults

The faults of tests/parity/faults.py, in both kinds of graph. normswap: the exact contract, and
whether its bisection names the place. numpy: allclose(rtol=atol=1e-3) on one batch of normal
inputs, as scripts do. Polygraphy, where installed: its Comparator with default tolerances (rtol =
atol = 1e-5) on the random inputs that it makes itself, both models in ONNX Runtime; ONNX only.
Beside the faults, models that are the same after an exact rewrite: flags there are false.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from normswap import fold_affine, save, swap, validate
from normswap.model import Model
from normswap.parity.probes import make_probes
from tests.parity.conftest import Builder
from tests.parity.faults import FAULTS
from tests.parity.test_faults import KINDS, clip, faulty
from tests.parity.victim import EOS, LENGTH, Clip

_TOLERANCE = 1e-3


def allclose(reference: Model, candidate: Model) -> bool:
    feeds = make_probes(reference)[0].feeds
    ours, theirs = reference.run(feeds), candidate.run(feeds)
    return all(
        np.allclose(ours[name], theirs[name], rtol=_TOLERANCE, atol=_TOLERANCE) for name in ours
    )


def polygraphy(reference: Model, candidate: Model) -> bool:
    """Whether Polygraphy's comparison passes with its defaults."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc, DataLoader

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        files = [Path(folder, name) for name in ("reference.onnx", "candidate.onnx")]
        for model, file in zip((reference, candidate), files, strict=True):
            save(model, file)
        runners = [OnnxrtRunner(SessionFromOnnx(str(file))) for file in files]
        loader = DataLoader(val_range={"ids": (0, EOS), "": (0.0, 1.0)})
        results = Comparator.run(runners, data_loader=loader)
        return bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple()))


def main() -> None:
    build = Builder()
    caught: dict[str, dict[str, list[str]]] = {}
    false: dict[str, list[str]] = {}
    for kind in KINDS:
        reference = clip(build, kind, Clip(), "clip")
        found: Mapping[str, list[str]]
        beside = kind == "onnx" and bool(importlib.util.find_spec("polygraphy"))
        tools = ("normswap", "place", "numpy", *(["polygraphy"] if beside else []))
        found = caught[kind] = {tool: [] for tool in tools}
        for fault in track(FAULTS, kind, console=Console(stderr=True)):
            wrong = faulty(build, kind, fault)
            report = validate(reference, wrong, bisect=True)
            if not report.passed:
                found["normswap"].append(fault.name)
            if report.bisection is not None and report.bisection.site in fault.sites:
                found["place"].append(fault.name)
            if not allclose(reference, wrong):
                found["numpy"].append(fault.name)
            if beside and not polygraphy(reference, wrong):
                found["polygraphy"].append(fault.name)
        rewrites = {to: swap(reference, to=to).model for to in ("fused", "rmsnorm")}
        rewrites["fold_affine"] = fold_affine(reference).model
        for name, model in rewrites.items():
            flags = {
                "normswap": not validate(reference, model).passed,
                "numpy": not allclose(reference, model),
                "polygraphy": beside and not polygraphy(reference, model),
            }
            false[f"{kind} {name}"] = [tool for tool, flagged in flags.items() if flagged]
    _tell(caught, false)


def _tell(caught: Mapping[str, Mapping[str, list[str]]], false: Mapping[str, list[str]]) -> None:
    print(f"{len(FAULTS)} faults, image 3x8x8 and {LENGTH} token ids")
    for kind, found in caught.items():
        for tool, names in found.items():
            missed = [fault.name for fault in FAULTS if fault.name not in names]
            print(f"{kind:5} {tool:11} {len(names):3}   missed: {', '.join(missed) or '-'}")
    for rewrite, tools in false.items():
        print(f"exact rewrite {rewrite}: flagged by {', '.join(tools) or 'none'}")


if __name__ == "__main__":
    main()
