"""Time and memory of fitting a swap, beside one forward pass over the same images.

    python -m benchmarks.fit_cost [--model timm:NAME] [--images N] [--memory MIB] [--json FILE]

in the repository's root. By default timm's ViT-B/16 at 224 with random weights and 64 random
images. Each measurement is a process of its own, with as many threads as torch takes. *forward s*
is one pass of the graph over the images in the fit's batches; *fit s* the swap, locating included;
*ratio* the one by the other. *memory* is the largest resident size above that before the images
were made, in MiB, of the forward pass and of the fit; *bound* what the fit's activations may take
in memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MODEL = "timm:vit_base_patch16_224?pretrained=false"
FITS: dict[str, dict[str, Any]] = {
    "batchnorm, moments": {"to": "batchnorm"},
    "affine": {"to": "affine"},
    "affine, writers": {"to": "affine", "refit_writers": True},
}


def forward(name: str, images: int, memory: int, fit: str) -> dict[str, float]:
    """Seconds and memory of one pass over the images."""
    from normswap.fit.batches import calibration_batches

    model, data = _prepared(name, images)
    import normswap as ns

    batches = calibration_batches(model, ns.locate(model), data)
    run = model.graph.slice(model.graph.inputs, model.graph.outputs)
    inputs = [spec.name for spec in model.inputs]

    def work() -> None:
        for batch in batches:
            run([batch[n] for n in inputs])

    return _measured(work)


def fitted(name: str, images: int, memory: int, fit: str) -> dict[str, float]:
    """Seconds and memory of one fit."""
    import normswap as ns

    model, data = _prepared(name, images)
    return _measured(lambda: ns.swap(model, data=data, memory=memory, **FITS[fit]))


def _prepared(name: str, images: int) -> Any:
    import numpy as np

    import normswap as ns

    model = ns.load(name)
    shape = [images if isinstance(s, str) else s for s in model.inputs[0].shape]
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return model, ns.load_data(array, model)


def _measured(work: Callable[[], object]) -> dict[str, float]:
    before = _resident()
    largest, running = [before], [True]

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
    return {"seconds": seconds, "mib": largest[0] - before}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    memory = options.memory << 20
    found = []
    print("| fit | forward s | fit s | ratio | memory: forward | fit | bound |")
    print("|---|---|---|---|---|---|---|")
    for fit in FITS:
        once = alone(forward, options.model, options.images, memory, fit)
        whole = alone(fitted, options.model, options.images, memory, fit)
        found.append({"fit": fit, "forward": once, "fitted": whole, "bound_mib": options.memory})
        print(
            f"| {fit} | {once['seconds']:.1f} | {whole['seconds']:.1f} "
            f"| {whole['seconds'] / once['seconds']:.2f} | {once['mib']:.0f} | {whole['mib']:.0f} "
            f"| {options.memory} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
