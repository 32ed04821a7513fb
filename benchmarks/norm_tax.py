"""What the norms of a whole model cost, and how much of that each exact swap leaves.

    pip install openvino               # optional
    python -m benchmarks.norm_tax [--models NAME ...] [--runtimes RUNTIME ...] [--batches N ...]
        [--swaps SWAP ...] [--opset N] [--threads N] [--rounds N] [--quick] [--json FILE]

in the repository's root. Models of timm and image towers of open_clip, with random weights. Every
model and runtime has a process of its own, in which the variants take turns:

* original: torch, the captured model; ONNX, TorchScript's export at ``--opset`` (14: norms in
  elementary operators, some of which the runtimes fuse themselves when they load the file).
* module: torch, the module that was captured.
* the swaps, for the runtime at hand; batchnorm and affine fitted to random images and folded.
* onnxruntime.transformers: what its optimizer makes of the original, in ONNX Runtime.
* no norms: each norm replaced by its input. That is the floor.

*ratio*: the time by the original's in the same round, median and quartiles. *tax left*: the share
(variant - no norms) / (original - no norms) in each round, likewise; rounds in which the original
was no slower than the floor do not count, and where those are many the tax is in the noise. Eager
torch is measured with the default allocator, which maps and returns large buffers every time, and
with one that keeps them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.measured_process import measured
from benchmarks.paired import Spread, interleaved, ratio, spread

MODELS = ("timm:vit_small_patch16_224", "timm:vit_base_patch16_224", "open_clip:ViT-B-32")
ORIGINAL, MODULE, FLOOR, PEER = "original", "module", "no norms", "onnxruntime.transformers"
KEEPING = {  # for glibc: large buffers from the heap too, which never shrinks
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
RUNTIMES: dict[str, dict[str, str]] = {  # with what is added to the environment
    "torch": {},
    "torch, keeping allocator": KEEPING,
    "torch.compile": {},
    "onnxruntime": {},
    "openvino": {},
}
TARGETS = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino"}
SWAPS = ("fused", "fused, tuned", "rmsnorm", "batchnorm", "affine")
DEFAULT_SWAPS = ("fused", "rmsnorm")
FITTED = ("batchnorm", "affine")
CALIBRATION, WARM_UP = 16, 3

Runs = dict[str, Callable[[], object]]
Session = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    model: str
    runtime: str
    batches: list[int]
    swaps: list[str]
    rounds: int
    threads: int
    opset: int


# -- models --------------------------------------------------------------------------------------


def _module(name: str) -> tuple[Any, Any]:
    """The module with weights that are not its initial ones, and a batch of two images."""
    from normswap.io.sources.packages import ensure_torchvision_importable

    ensure_torchvision_importable()
    import torch

    torch.manual_seed(0)
    library, _, kind = name.partition(":")
    if library == "timm":
        import timm

        module = timm.create_model(kind)
    else:
        import open_clip

        module = open_clip.create_model(kind).visual
    with torch.no_grad():
        for parameter in module.parameters():  # no gamma is one, no beta zero
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return module.eval(), torch.randn(2, 3, 224, 224)


def _without_norms(module: Any) -> Any:
    import copy

    from torch import nn

    module = copy.deepcopy(module)
    for owner in list(module.modules()):
        for name, child in owner.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(owner, name, nn.Identity())
    return module


def _swapped(model: Any, swap: str, runtime: str) -> Any:
    """The model after the swap. Raises NormswapError where it cannot be made."""
    import numpy as np

    import normswap as ns

    if swap in FITTED:
        shape = (CALIBRATION, *model.inputs[0].shape[1:])
        data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        return ns.fold(ns.swap(model, to=swap, data=data).model).model
    target = TARGETS.get(runtime)
    if swap == "rmsnorm":
        made_for = ns.Lowering(kernels=model.kind == "fx")
        result = ns.swap(model, to=swap, lowering=made_for)
    else:
        made_for = ns.Lowering(target, kernels=target is None, tune=swap == "fused, tuned")
        result = ns.swap(model, to="fused", lowering=made_for)
    if not result.modified:
        raise ns.NormswapError(f"{swap}: nothing to do")
    return result.model


def _each_swap(case: Case, model: Any, use: Callable[[str, Any], None]) -> dict[str, str]:
    """Hands every swapped model to ``use``; why some could not be made."""
    import normswap as ns

    missing = {}
    for swap in case.swaps:
        try:
            use(swap, _swapped(model, swap, case.runtime))
        except ns.NormswapError as error:
            missing[swap] = str(error)
    return missing


# -- torch ---------------------------------------------------------------------------------------


def torch_variants(case: Case) -> tuple[dict[str, Any], dict[str, str]]:
    """What can be called with images, and why some swaps could not be made."""
    import torch

    import normswap as ns

    torch.set_num_threads(case.threads)
    module, image = _module(case.model)
    model = ns.load(module, example_inputs=(image,))
    variants = {ORIGINAL: model.to_inference(), MODULE: module}

    def use(swap: str, swapped: Any) -> None:
        variants[swap] = swapped.to_inference()

    missing = _each_swap(case, model, use)
    variants[FLOOR] = ns.load(_without_norms(module), example_inputs=(image,)).to_inference()
    if case.runtime == "torch.compile":
        variants = {name: torch.compile(some) for name, some in variants.items()}
    return variants, missing


def torch_runs(variants: Mapping[str, Any], batch: int) -> Runs:
    """Each on the same ``batch`` images."""
    import torch

    if isinstance(next(iter(variants.values())), torch._dynamo.OptimizedModule):
        torch._dynamo.reset()  # so that it compiles for this batch and not for any
    images = torch.randn(batch, 3, 224, 224)

    def runner(module: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return module(images)

        return run

    return {name: runner(module) for name, module in variants.items()}


# -- ONNX ----------------------------------------------------------------------------------------


def _files(case: Case, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The variants as files."""
    import warnings

    import torch

    import normswap as ns

    module, image = _module(case.model)
    files = {ORIGINAL: folder / "original.onnx"}
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        torch.onnx.export(
            module,
            (image,),
            str(files[ORIGINAL]),
            opset_version=case.opset,
            input_names=["image"],
            output_names=["result"],
            dynamic_axes={"image": {0: "batch"}},
            dynamo=False,
        )
    model = ns.load(files[ORIGINAL])

    def use(swap: str, swapped: Any) -> None:
        files[swap] = folder / f"{swap}.onnx"
        ns.save(swapped, files[swap])

    missing = _each_swap(case, model, use)
    if case.runtime == "onnxruntime":
        from onnxruntime.transformers.optimizer import optimize_model

        files[PEER] = folder / "transformers.onnx"
        kind = "clip" if case.model.startswith("open_clip") else "vit"
        optimize_model(str(files[ORIGINAL]), kind).save_model_to_file(str(files[PEER]))
    floor = model.copy()
    for site in reversed(ns.locate(model)):
        floor.graph.replace_uses(floor.graph.value(site.output), floor.graph.value(site.input))
    floor.graph.prune()
    files[FLOOR] = folder / "no-norms.onnx"
    ns.save(floor, files[FLOOR])
    return files, missing


def _onnxruntime(file: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _openvino(file: Path, threads: int) -> Session:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda feeds: request.infer(feeds)


OPENED: dict[str, Callable[[Path, int], Session]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _onnx_runs(sessions: Mapping[str, Session], batch: int) -> Runs:
    import numpy as np

    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)

    def runner(session: Session) -> Callable[[], object]:
        return lambda: session({"image": images})

    return {name: runner(session) for name, session in sessions.items()}


# -- one process ---------------------------------------------------------------------------------


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for every batch and variant."""
    with tempfile.TemporaryDirectory() as folder:
        if case.runtime in OPENED:
            files, missing = _files(case, Path(folder))
            opened = OPENED[case.runtime]
            variants: dict[str, Any] = {n: opened(f, case.threads) for n, f in files.items()}
        else:
            variants, missing = torch_variants(case)
        prepared = _onnx_runs if case.runtime in OPENED else torch_runs
        return [
            row
            for batch in case.batches
            for row in _rows(case, batch, prepared(variants, batch), missing)
        ]


def _rows(case: Case, batch: int, runs: Runs, missing: dict[str, str]) -> list[dict[str, Any]]:
    def timed(run: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return seconds

    found = interleaved({n: timed(r) for n, r in runs.items()}, case.rounds, WARM_UP)
    common = {"model": case.model, "runtime": case.runtime, "batch": batch}
    rows: list[dict[str, Any]] = [common | {"variant": n, "missing": w} for n, w in missing.items()]
    for name, seconds in found.items():
        times = {"ms": 1000 * statistics.median(seconds)}
        times["ratio"] = asdict(ratio(seconds, found[ORIGINAL]))
        times["tax_left"] = _tax_left(seconds, found[ORIGINAL], found[FLOOR])
        rows.append(common | {"variant": name} | times)
    return rows


def _tax_left(
    variant: Sequence[float], original: Sequence[float], floor: Sequence[float]
) -> dict[str, Any] | None:
    """``of``: the share of the rounds that count."""
    rounds = [(v - f) / (o - f) for v, o, f in zip(variant, original, floor, strict=True) if o > f]
    return {**asdict(spread(rounds)), "of": len(rounds) / len(variant)} if rounds else None


# -- the command ---------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| model | runtime | batch | variant | ms | ratio | tax left |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["model"], row["runtime"], str(row["batch"]), row["variant"]]
        if "missing" in row:
            cells += ["", row["missing"], ""]
        else:
            cells += [f"{row['ms']:.1f}", shown(row["ratio"]), _left(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _left(row: dict[str, Any]) -> str:
    left = row["tax_left"]
    if row["variant"] in (ORIGINAL, FLOOR):
        return ""
    if left is None or left["of"] < 0.75:
        return "the tax is in the noise"
    return shown(left)


def shown(values: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{values['median']:.3f} ({values['low']:.3f} to {values['high']:.3f})"


def measured_alone(benchmark: str, case: Case) -> list[dict[str, Any]]:
    """The rows of ``case`` from a process of its own, which ``benchmark`` is run in."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        own = [sys.executable, "-m", f"benchmarks.{benchmark}", "--task"]
        threads = {"OMP_NUM_THREADS": str(case.threads)}
        cost = measured(
            [*own, json.dumps(asdict(case)), str(result)], RUNTIMES[case.runtime] | threads
        )
        if cost.error:
            common = {"model": case.model, "runtime": case.runtime, "batch": ""}
            return [common | {"variant": "", "missing": cost.error}]
        return list(json.loads(result.read_text()))


def figures(rows: Sequence[dict[str, Any]], key: str) -> Figures:
    """What a record keeps of ``rows``: their spread called ``key``."""
    return {
        f"{row['model']}: {row['runtime']}: batch {row['batch']}: {row['variant']}: {key}": (
            Figure.of(Spread(**row[key]), "")
        )
        for row in rows
        if key in row and row["variant"] not in (ORIGINAL, FLOOR)
    }


def argument_parser(about: str) -> argparse.ArgumentParser:
    """The options that choose models and rounds; ``about``: a module's docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="one model, batch 1, five rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    add_record_option(parser)
    return parser


def main() -> None:
    parser = argument_parser(str(__doc__))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--swaps", nargs="*", default=list(DEFAULT_SWAPS), choices=SWAPS)
    parser.add_argument("--opset", type=int, default=14)
    options = parser.parse_args()
    if options.task:
        given, result = options.task
        Path(result).write_text(json.dumps(measure(Case(**json.loads(given)))))
        return

    from normswap.report.progress import Progress

    if options.quick:
        options.models, options.batches, options.rounds = options.models[:1], [1], 5
    installed = bool(importlib.util.find_spec("openvino"))
    runtimes = [r for r in options.runtimes if r != "openvino" or installed]
    rows: list[dict[str, Any]] = []
    shared = (options.batches, options.swaps, options.rounds, options.threads, options.opset)
    cases = [Case(model, runtime, *shared) for model in options.models for runtime in runtimes]
    with Progress(lines=True) as progress:
        for done, case in enumerate(cases, start=1):
            progress(done, len(cases), f"{case.model} in {case.runtime}")
            rows += measured_alone("norm_tax", case)
            if options.json:
                options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}))
    print(f"{options.threads} threads, {options.rounds} rounds\n")
    print(table(rows))
    write_record(options.record, "norm_tax", figures(rows, "ratio"))
    if not installed and "openvino" in options.runtimes:
        print("\nopenvino is not installed.")


if __name__ == "__main__":
    main()
