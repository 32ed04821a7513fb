"""Fuzzes normswap: ``python -m tests.fuzz --count 100000 --jobs 2 --save /tmp/found``.

Mutants of models (ONNX, .pt2, Hugging Face folders) and of data are inspected, fused and folded in
forked children with limits on time and memory; what ONNX Runtime runs is compared. Ends with
status 1 if there was a traceback, a signal, a hang or a wrong result, listed by cause. ``--only N``
runs one mutant in this process, with its traceback.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.run import Findings, fuzz, written
from tests.fuzz.seeds import KINDS, seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many mutants")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after that long")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--save", type=Path, help="a folder for an example of each cause")
    parser.add_argument("--only", type=int, help="the number of one mutant, to look at it")
    given = parser.parse_args()
    made = seeds(tuple(given.kinds.split(",")), many=True)
    if given.only is not None:
        return _look_at(made, given.only, given.seed)
    start = time.monotonic()
    shares = [
        (made, range(job, given.count, given.jobs), given.seed, given.save, given.seconds)
        for job in range(given.jobs)
    ]
    with multiprocessing.get_context("fork").Pool(given.jobs) as pool:
        found = pool.starmap(fuzz, shares)
    total = Findings()
    for part in found:
        total.counts += part.counts
        for cause, number in part.first.items():
            total.first[cause] = min(number, total.first.get(cause, number))
        total.slowest = max(total.slowest, part.slowest)
    seconds = time.monotonic() - start
    print(
        f"{total.counts.total()} mutants of {len(made)} files in {seconds:.0f} s, seed {given.seed}"
    )
    print(f"the slowest: number {total.slowest[1]}, {total.slowest[0]:.1f} s")
    for cause, count in sorted(total.counts.items(), key=lambda item: -item[1]):
        print(f"{count:8d}  {cause}  (first: --only {total.first[cause]})")
    return 1 if total.wrong else 0


def _look_at(made: list, number: int, seed: int) -> int:  # type: ignore[type-arg]
    from tests.fuzz import trial

    trial.warm()
    with tempfile.TemporaryDirectory() as folder:
        chosen, path = written(made, number, seed, Path(folder))
        print(chosen.kind, chosen.name, path)
        print(trial.load(chosen.kind, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
