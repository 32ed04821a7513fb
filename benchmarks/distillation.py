"""What distillation gives back after all LayerNorms became BatchNorms, beside a control.

    python -m benchmarks.distillation MODEL [MODEL ...] [--steps N] [--json FILE]

in the repository's root. MODEL are folders of digits-vit or digits-clip checkpoints, one for each
training seed; benchmarks/fits.py says how to make them. A CLIP is done twice: its image tower
alone, and both towers.

*student*: all norms swapped for BatchNorms by least squares, one in each FFN too, from the 1257
training images without labels (and, for both towers, captions that do not belong to the images).
*distilled*: the same after ``distill`` on that data, with its defaults, folded. *control*: the
original, LayerNorms and all, trained on for as many steps on the same batches with what it was
trained with: cross-entropy with label smoothing 0.1, a CLIP's contrastive loss with its captions.

Scored on the 540 test images. *lost*: accuracy (zero-shot for a CLIP) minus the original's, in
points; *agreement*: the share of images with the original's answer; *cosine* and *SQNR*: of the
logits, or the image embeddings, against the original's. Mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import normswap as ns
from normswap.assets import digits
from normswap.demo.tasks import IMAGES, MASK, TEXTS, Task, tasks
from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.io.fx_model import model_from_module
from normswap.model import Model
from normswap.parity.metrics import Similarity
from normswap.report.progress import Progress
from normswap.train.distill import default_options, distill
from normswap.train.loop import Batch, train
from normswap.train.samples import shuffled
from normswap.train.taps import parameters_of, tapped

SMOOTHING = 0.1
SETTINGS = {
    "ViTForImageClassification": {"digits-vit": None},
    "CLIPModel": {"digits-clip, image tower": None, "digits-clip, both towers": "*"},
}


@dataclass(frozen=True)
class Score:
    """One model of one seed. ``lost`` in points, ``agreement`` in percent, ``sqnr`` in dB."""

    setting: str
    seed: str
    what: str
    original: float
    lost: float
    agreement: float
    cosine: float
    sqnr: float
    seconds: float


def run(
    setting: str, sites: str | None, task: Task, folder: Path, steps: int | None
) -> list[Score]:
    model = ns.load(folder)
    data = _data(model, both=sites is not None)
    swapped = ns.swap(
        model, ns.BatchNorm(fit="least-squares", ffn_batchnorm=True), sites=sites, data=data
    ).model
    result = distill(swapped, model, data, steps=steps)
    control, seconds = _control(model, len(result.losses), sites is None)
    made = {
        "student": (ns.fold(swapped).model, 0.0),
        "distilled": (ns.fold(result.model).model, result.seconds),
        "control": (control, seconds),
    }
    return [
        _score(setting, folder.name, what, task, model, other, taken)
        for what, (other, taken) in made.items()
    ]


def _data(model: Model, both: bool) -> Data:
    """The training images; for ``both`` towers with captions of any class."""
    split = digits.load_digits_split()
    feeds: dict[str, Array] = {IMAGES: split.train_images}
    if both:
        captions = digits.class_caption_ids().reshape(-1, digits.CONTEXT_LENGTH)
        chosen = np.random.default_rng(0).integers(len(captions), size=len(split.train_images))
        feeds |= _texts(captions[chosen])
    return Data({spec.name: feeds[spec.name] for spec in model.inputs if spec.name in feeds}, None)


def _texts(ids: Array) -> dict[str, Array]:
    return {TEXTS: ids, MASK: (ids != digits.VOCABULARY[digits.PAD]).astype(ids.dtype)}


def _control(model: Model, steps: int, image_tower_only: bool) -> tuple[Model, float]:
    """The original trained on with labels, and the seconds that took."""
    split = digits.load_digits_split()
    feeds: dict[str, Array] = {IMAGES: split.train_images, "labels": split.train_labels}
    module = model.to_torch()
    outputs = dict(zip(model.output_names, model.graph.outputs, strict=True))
    loss: Callable[[nn.Module, Batch, int], torch.Tensor]
    if "logits" in outputs:
        trained = tapped(module, [outputs["logits"].name])
        loss = _label_loss
    else:
        captions = digits.class_caption_ids()
        turn = np.random.default_rng(0).integers(captions.shape[1], size=len(split.train_labels))
        feeds |= _texts(captions[split.train_labels, turn])
        names = [outputs[name].name for name in ("image_embeds", "text_embeds")]
        trained = tapped(module, names)
        if image_tower_only:
            fixed = parameters_of(module, names[1:])
            for name, parameter in trained.named_parameters():
                parameter.requires_grad_(name not in fixed)
        loss = _contrastive_loss
    options = default_options(len(split.train_labels), steps=steps)
    result = train(trained, loss, shuffled(feeds, options.batch, options.seed), options)
    graph = model_from_module(module, model.name).graph
    return replace(model, graph=graph), result.seconds


def _label_loss(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
    (logits,) = module(batch[IMAGES])
    return cross_entropy(logits, batch["labels"], label_smoothing=SMOOTHING)


def _contrastive_loss(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
    """Targets are spread over all pairs of one class, as in examples/train_digits_clip.py."""
    images, texts = (
        normalize(x, dim=-1) for x in module(*(batch[n] for n in (IMAGES, TEXTS, MASK)))
    )
    same = (batch["labels"][:, None] == batch["labels"][None]).float()
    scores = images @ texts.T / 0.07
    return (
        cross_entropy(scores, same / same.sum(1, keepdim=True))
        + cross_entropy(scores.T, same / same.sum(1, keepdim=True))
    ) / 2


def _score(
    setting: str, seed: str, what: str, task: Task, model: Model, other: Model, seconds: float
) -> Score:
    expected, got = task.answers(model), task.answers(other)
    name = "logits" if "logits" in model.output_names else "image_embeds"
    feeds = task.test_for(model)
    similarity = Similarity()
    similarity.add(model.run(feeds)[name], other.run(feeds)[name])
    return Score(
        setting,
        seed,
        what,
        100 * task.share_right(expected),
        100 * (task.share_right(got) - task.share_right(expected)),
        100 * float((expected == got).mean()),
        similarity.cosine_mean,
        similarity.sqnr_db,
        seconds,
    )


def table(scores: Sequence[Score]) -> str:
    """In Markdown, a row for each setting and model."""
    lines = [
        "| model | | accuracy | lost (worst) | agreement | cosine | SQNR dB | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in dict.fromkeys(s.setting for s in scores):
        for what in dict.fromkeys(s.what for s in scores):
            rows = [s for s in scores if (s.setting, s.what) == (setting, what)]
            lost = np.array([s.lost for s in rows])
            cells = [
                f"{np.mean([s.original + s.lost for s in rows]):.2f}",
                f"{lost.mean():+.2f} ± {lost.std():.2f} ({lost.min():+.2f})",
                f"{np.mean([s.agreement for s in rows]):.1f}",
                f"{np.mean([s.cosine for s in rows]):.4f}",
                f"{np.mean([s.sqnr for s in rows]):.1f}",
                f"{np.mean([s.seconds for s in rows]):.0f}",
            ]
            lines.append(f"| {setting} ({len(rows)} seeds) | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--steps", type=int, metavar="N", help="by default those of distill")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each run")
    options = parser.parse_args()
    both = dict(zip(SETTINGS, tasks(), strict=True))
    todo = []
    for folder in options.models:
        kind = json.loads((folder / "config.json").read_text())["architectures"][0]
        todo += [(s, sites, both[kind], folder) for s, sites in SETTINGS[kind].items()]
    scores: list[Score] = []
    with Progress(lines=True) as progress:
        for number, (setting, sites, task, folder) in enumerate(todo):
            progress(number, len(todo), f"{folder.name}: {setting}")
            scores += run(setting, sites, task, folder, options.steps)
            if options.json:
                options.json.write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
        progress(len(todo), len(todo), "done")
    print(table(scores))


if __name__ == "__main__":
    main()
