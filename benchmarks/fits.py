"""What each way of taking the LayerNorms out costs in accuracy, without training.

    python -m benchmarks.fits MODEL [MODEL ...] [--samples N ...] [--fits FIT ...] [--json FILE]

in the repository's root. MODEL are folders of digits-vit or digits-clip checkpoints, one for each
training seed, as the scripts in examples/ write them:

    for seed in 1 2 3 4; do
        python examples/train_digits_vit.py --seed $seed -o seeds/vit$seed
        python examples/train_digits_clip.py --seed $seed -o seeds/clip$seed
    done
    python -m benchmarks.fits seeds/*

Each fit sees N training images without labels (drawn by the seed's number), swaps all norms (of a
CLIP's image tower), and is folded. Scored on the 540 test images: *lost* is the accuracy (zero-shot
for a CLIP) minus the original's, in points; *agreement* the share of images with the original's
answer. Mean, standard deviation and worst over the seeds. *left* counts the operators of norms, and
of scales and shifts, that the fold could not remove.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import normswap as ns
from normswap.demo.tasks import Task, tasks
from normswap.graph.graph import Graph
from normswap.report.progress import Progress

SAMPLES = (1000, 256)
FITS: dict[str, ns.Pass] = {
    "batchnorm, copy": ns.BatchNorm(fit="copy"),
    "batchnorm, moments": ns.BatchNorm(fit="moments"),
    "batchnorm, least-squares": ns.BatchNorm(fit="least-squares"),
    "batchnorm, least-squares, class": ns.BatchNorm(fit="least-squares", tokens="class"),
    "batchnorm, least-squares, position": ns.BatchNorm(fit="least-squares", tokens="position"),
    "affine": ns.Affine(),
    "affine, class": ns.Affine(tokens="class"),
    "affine, position": ns.Affine(tokens="position"),
    "affine, writers": ns.Affine(refit_writers=True),
    "affine, writers, class": ns.Affine(refit_writers=True, tokens="class"),
    "affine, writers, position": ns.Affine(refit_writers=True, tokens="position"),
    "predicted": ns.Predicted(),
}


@dataclass(frozen=True)
class Score:
    """One fit of one model. ``lost`` in points; ``agreement`` in percent."""

    model: str
    task: str
    fit: str
    samples: int
    original: float
    lost: float
    agreement: float
    swapped: int
    norms_left: int
    scales_left: int


def score(task: Task, folder: Path, number: int, samples: int, fit: str) -> Score:
    model = ns.load(folder)
    data = ns.load_data(task.calibration_for(model), model, samples, seed=number)
    swapped = ns.swap(model, FITS[fit], data=data)
    folded = ns.fold(swapped.model).model
    expected, got = task.answers(model), task.answers(folded)
    return Score(
        model=folder.name,
        task=task.name,
        fit=fit,
        samples=samples,
        original=100 * task.share_right(expected),
        lost=100 * (task.share_right(got) - task.share_right(expected)),
        agreement=100 * float((expected == got).mean()),
        swapped=len(swapped.done),
        norms_left=sum(s.tower in ("image", "") for s in ns.locate(folded)),
        scales_left=_added(model.graph, folded.graph),
    )


def _added(before: Graph, after: Graph) -> int:
    """The Mul, Add and MatMul nodes of constants that a swap put in and the fold left."""
    known = {value.name for value in before.values()}
    return sum(
        node.op in ("Mul", "MatMul") and node.output.name not in known for node in after.nodes
    )


def table(scores: Sequence[Score]) -> str:
    """In Markdown, a row for each fit and a pair of columns for each task and number of samples."""
    columns = sorted({(s.task, s.samples) for s in scores}, key=lambda c: (c[0], -c[1]))
    heads = [f"{task}, {samples} images: lost (worst) | agreement" for task, samples in columns]
    lines = [
        f"| fit | {' | '.join(heads)} | left per model |",
        f"|---|{'---|---|' * len(columns)}---|",
    ]
    for fit in dict.fromkeys(s.fit for s in scores):
        cells = []
        for task, samples in columns:
            rows = [s for s in scores if (s.fit, s.task, s.samples) == (fit, task, samples)]
            lost = np.array([s.lost for s in rows])
            agreement = np.array([s.agreement for s in rows])
            cells.append(f"{lost.mean():+.1f} ± {lost.std():.1f} ({lost.min():+.1f})")
            cells.append(f"{agreement.mean():.1f} ± {agreement.std():.1f}")
        rows = [s for s in scores if s.fit == fit]
        left = max(s.norms_left for s in rows), max(s.scales_left for s in rows)
        told = "nothing" if left == (0, 0) else f"{left[0]} norms, {left[1]} scales and shifts"
        lines.append(f"| {fit} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES, metavar="N")
    parser.add_argument("--fits", nargs="+", default=list(FITS), choices=FITS, metavar="FIT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    known = {"ViTForImageClassification": 0, "CLIPModel": 1}
    both = tasks()
    todo = [(f, n, fit) for f in options.models for n in options.samples for fit in options.fits]
    scores = []
    with Progress() as progress:
        for number, (folder, samples, fit) in enumerate(todo):
            progress(number, len(todo), f"{folder.name}, {samples} images: {fit}")
            kind = json.loads((folder / "config.json").read_text())["architectures"][0]
            seed = options.models.index(folder)
            scores.append(score(both[known[kind]], folder, seed, samples, fit))
        progress(len(todo), len(todo), "done")
    if options.json:
        options.json.write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
    originals = {s.model: (s.task, s.original) for s in scores}
    for model, (task, original) in originals.items():
        print(f"{model} ({task}): {original:.1f} %", file=sys.stderr)
    print(table(scores))


if __name__ == "__main__":
    main()
