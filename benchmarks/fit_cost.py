"""Time and memory of fitting a swap, beside one forward pass over the same images.

    python -m benchmarks.fit_cost [--model timm:NAME] [--images N] [--memory MIB] [--rounds N]
        [--fits FIT ...] [--json FILE]

in the repository's root. By default timm's ViT-B/16 at 224 with random weights and 64 random
images. Each round of each fit is a process of its own, with as many threads as torch takes; it runs
one pass of the graph over the images in the fit's batches, the fit, and the pass again. *ratio*:
the time of the fit (locating included) by the mean of the two passes around it, the median over the
rounds with the lowest and the highest; *forward s* and *fit s* are medians. *memory* is the largest
resident size above that before the images were made, in MiB, of the first pass and of the fit, with
what the allocator keeps of freed memory; *bound* what the fit's activations may take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record

MODEL = "timm:vit_base_patch16_224?pretrained=false"
FITS = ("batchnorm, moments", "affine", "affine, writers", "predicted")


def measured(name: str, images: int, memory: int, fit: str) -> dict[str, float]:
    """Seconds and memory of one fit and of the passes around it."""
    import normswap as ns
    from normswap.fit.calibration import calibration_batches

    model, data = _prepared(name, images)
    batches = calibration_batches(model, ns.locate(model), data)
    run = model.graph.slice(model.graph.inputs, model.graph.outputs)
    inputs = [spec.name for spec in model.inputs]

    def forward() -> None:
        for batch in batches:
            run([batch[n] for n in inputs])

    start = _resident()
    before = _measured(forward, start)
    how = {
        "batchnorm, moments": ns.BatchNorm(memory=memory),
        "affine": ns.Affine(memory=memory),
        "affine, writers": ns.Affine(memory=memory, refit_writers=True),
        "predicted": ns.Predicted(memory=memory),
    }[fit]
    whole = _measured(lambda: ns.swap(model, how, data=data), start)
    after = _measured(forward, start)
    passes = (before["seconds"] + after["seconds"]) / 2
    return {
        "forward": passes,
        "fit": whole["seconds"],
        "ratio": whole["seconds"] / passes,
        "forward_mib": before["mib"],
        "fit_mib": whole["mib"],
    }


def _prepared(name: str, images: int) -> Any:
    import numpy as np

    import normswap as ns

    model = ns.load(name)
    shape = [images if isinstance(s, str) else s for s in model.inputs[0].shape]
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return model, ns.load_data(array, model)


def _measured(work: Callable[[], object], start_mib: float) -> dict[str, float]:
    largest, running = [0.0], [True]

    def watch() -> None:
        while running[0]:
            largest[0] = max(largest[0], _resident())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    running[0] = False
    watcher.join()
    return {"seconds": seconds, "mib": largest[0] - start_mib}


def _resident() -> float:
    """The resident size in MiB, pages of mapped files left out (they are the system's to drop)."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) / 1024


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def figures(found: list[dict[str, Any]]) -> Figures:
    """What a record keeps."""
    made = {}
    for row in found:
        made[f"{row['fit']}: ratio"] = Figure.of([r["ratio"] for r in row["rounds"]], "")
        made[f"{row['fit']}: memory"] = Figure.of([r["fit_mib"] for r in row["rounds"]], "MiB")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fits", nargs="+", default=FITS, choices=FITS, metavar="FIT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_record_option(parser)
    options = parser.parse_args()
    memory = options.memory << 20
    found = []
    print("| fit | forward s | fit s | ratio | memory: forward | fit | bound |")
    print("|---|---|---|---|---|---|---|")
    for fit in options.fits:
        rounds = [
            alone(measured, options.model, options.images, memory, fit)
            for _ in range(options.rounds)
        ]
        found.append({"fit": fit, "rounds": rounds, "bound_mib": options.memory})
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        ratios = [r["ratio"] for r in rounds]
        print(
            f"| {fit} | {middle['forward']:.1f} | {middle['fit']:.1f} "
            f"| {middle['ratio']:.1f} ({min(ratios):.1f}-{max(ratios):.1f}) "
            f"| {middle['forward_mib']:.0f} | {middle['fit_mib']:.0f} | {options.memory} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    write_record(options.record, "fit_cost", figures(found))


if __name__ == "__main__":
    main()
