"""Real trained models in half precision: what is lost, and what is left after each cure.

    python -m benchmarks.real_half [--models NAME ...] [--samples N] [--cache FOLDER] [--json FILE]

in the repository's root, on the models and data of ``real_models``. Every figure is of simulated
float16 against the model in float32, on test samples of the first draw: *not finite* where an
output is NaN or infinite, else the mean cosine of all outputs and the largest error by the largest
output. *rescaled* saw the first 64 calibration samples. *converted* is what ``--dtype float16``
writes, in simulated float16 too, with its islands of float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import normswap as ns
from benchmarks.real_packages import Unavailable, default_cache
from benchmarks.real_tasks import TASKS
from normswap.graph.graph import Array
from normswap.precision.simulate import SimulatedModel

FORMAT, CALIBRATION, AT_ONCE = "float16", 64, 4


@dataclass(frozen=True)
class Row:
    """A form of a model; the figures are None where the outputs are not finite."""

    model: str
    form: str
    nodes: int
    cosine: float | None
    error: float | None
    says: str


def _compared(
    like: ns.Model, model: ns.Model, feeds: Mapping[str, Array]
) -> tuple[float | None, float | None, str]:
    """The mean cosine and the largest error of simulated ``model``; what overflows first."""
    simulated = SimulatedModel(model, FORMAT)
    count = len(next(iter(feeds.values())))
    cosines, errors = [], []
    finite = True
    for start in range(0, count, AT_ONCE):
        part = {spec.name: feeds[spec.name][start : start + AT_ONCE] for spec in like.inputs}
        for a, b in zip(like.run(part).values(), simulated.run(part), strict=True):
            finite &= bool(np.isfinite(b).all())
            rows = a.reshape(len(a), -1).astype(float), b.reshape(len(a), -1).astype(float)
            norms = np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1)
            cosines.append(float(np.mean((rows[0] * rows[1]).sum(1) / norms)))
            errors.append(float(np.abs(rows[0] - rows[1]).max() / np.abs(rows[0]).max()))
    first = simulated.overflow_text()
    if not finite:
        return None, None, first
    return float(np.mean(cosines)), max(errors), first


def measure(name: str, samples: int, cache: Path) -> list[Row]:
    """A row for each form of a model."""
    task = TASKS[name](cache)
    draw, model = task.draw(0), task.model
    test = {key: array[:samples] for key, array in draw.test.items()}
    data = {key: array[:CALIBRATION] for key, array in draw.calibration.items()}
    rescaled = ns.swap(model, ns.Rescale(), data=data)
    converted = ns.convert(model, FORMAT)
    after = ns.convert(rescaled.model, FORMAT)
    forms = {
        "as it is": (model, ""),
        "fused": (ns.swap(model, to="fused").model, ""),
        "rescaled": (rescaled.model, "; ".join(n for n in rescaled.notes if "stays" in n)),
        "converted": (converted.model, f"{len(converted.islands)} islands"),
        "rescaled, converted": (after.model, f"{len(after.islands)} islands"),
    }
    rows = []
    for form, (changed, says) in forms.items():
        cosine, error, first = _compared(model, changed, test)
        told = "; ".join(filter(None, (says, first)))
        rows.append(Row(name, form, len(changed.graph.nodes), cosine, error, told))
        print(*asdict(rows[-1]).values(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| model | form | operators | cosine | largest error | |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = ["not finite", ""]
        if row.cosine is not None and row.error is not None:
            figures = [f"{row.cosine:.6f}", f"{row.error:.1e}"]
        cells = [row.model, row.form, str(row.nodes), *figures, row.says]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--samples", type=int, default=24, metavar="N")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.models:
        try:
            rows += measure(name, options.samples, options.cache.resolve())
        except (Unavailable, ns.NormswapError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
