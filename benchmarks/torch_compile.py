"""The torch.compile backend ``normswap`` beside Inductor and eager torch on a ViT, paired.

    python -m benchmarks.torch_compile [--model NAME] [--batches N ...] [--rounds N]

NAME is timm's, vit_base_patch16_224 by default; images of 224 px, float32, no gradients, as many
threads as the machine has. All run in turn in one process; ratios are to Inductor in the same
round, with their quartiles. Also the largest error against float64, as a share of the largest
output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.norm_tax import _module
from benchmarks.paired import interleaved, ratio, spread
from normswap.hosts.torch_compile import backend

_WARM_UP = 3


def measure(name: str, batch: int, rounds: int) -> list[str]:
    """The lines of the table for one batch."""
    module, images = _module(f"timm:{name}")
    x = images[:1].repeat(batch, 1, 1, 1)
    torch._dynamo.reset()
    models = {
        "eager": module,
        "inductor": torch.compile(module, dynamic=False),
        "normswap": torch.compile(module, backend=backend, dynamic=False),
        "normswap, then eager": torch.compile(
            module, backend=backend, options={"then": "eager"}, dynamic=False
        ),
    }

    def timed(model: Any) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            model(x)
            return time.perf_counter() - start

        return seconds

    with torch.inference_mode():
        results = {what: model(x) for what, model in models.items()}
        runs = {what: timed(model) for what, model in models.items()}
        times = interleaved(runs, rounds, _WARM_UP)
        exact = module.double()(x.double())
    lines = []
    for what, seconds in times.items():
        error = float((results[what] - exact).abs().max() / exact.abs().max())
        milliseconds = spread([1e3 * s for s in seconds])
        share = ratio(seconds, times["inductor"])
        lines.append(f"| {batch} | {what} | {milliseconds} | {share} | {error:.1e} |")
    return lines


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224", metavar="NAME")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    options = parser.parse_args()
    print("| batch | by | ms | ratio to Inductor | error |\n|---|---|---|---|---|")
    for batch in options.batches:
        print("\n".join(measure(options.model, batch, options.rounds)))


if __name__ == "__main__":
    main()
