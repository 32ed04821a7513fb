"""What two models answer, sample by sample, with small pictures of the samples that tell most."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.io.images import image_input
from normswap.io.preprocessing import Preprocessing
from normswap.model import Model
from normswap.parity.report import Answers, Fate, SampleAnswer

_MOST = 24  # samples that are told one by one
_MOST_OF_A_FATE = 12  # before others had their turn
_SIDE = 112  # pixels of a picture
_DRAWN = 32  # pixels; up to them a picture is kept to the pixel
_DARK = 128  # where no picture has a brighter pixel, all are brightened


def answers_of(
    output: str, reference: Array, candidate: Array, labels: Array | None, zero_shot: bool
) -> Answers:
    """``reference``, ``candidate``: the class that each gives every sample, integers [N]; so are
    ``labels``. Those where the models part, then those that are wrong, are told first."""
    truth: Sequence[int | None] = [None] * len(reference) if labels is None else labels.tolist()
    answers = zip(truth, reference.tolist(), candidate.tolist(), strict=True)
    samples = [SampleAnswer(row, *answer) for row, answer in enumerate(answers)]
    fates = [f for f in Fate if (f in (Fate.DIFFERENT, Fate.SAME)) is (labels is None)]
    groups = {fate: [sample for sample in samples if sample.fate == fate] for fate in fates}
    first = [sample for group in groups.values() for sample in group[:_MOST_OF_A_FATE]]
    rest = [sample for group in groups.values() for sample in group[_MOST_OF_A_FATE:]]
    chosen = sorted([*first, *rest][:_MOST], key=lambda sample: fates.index(sample.fate))
    counts = {fate.value: len(group) for fate, group in groups.items()}
    return Answers(output, zero_shot, counts, chosen)


def with_pictures(answers: Answers, model: Model, data: Data) -> Answers:
    """The samples with their images, where ``data`` holds what ``model.preprocessing`` makes of
    images, from which they are made back."""
    spec, known = image_input(model.inputs), model.preprocessing
    images = None if spec is None else data.feeds.get(spec.name)
    if images is None or not isinstance(known, Preprocessing):
        return answers
    if images.ndim != 4 or images.shape[1] != known.channels:
        return answers
    levels = [_levels(images[sample.row], known) for sample in answers.samples]
    brightest = max((float(level.max()) for level in levels), default=0.0)
    # Some count pixels up to 16, not 255.
    gain = 255 / brightest if 0 < brightest < _DARK else 1.0
    pairs = zip(answers.samples, levels, strict=True)
    return replace(answers, samples=[replace(s, image=_picture(gain * v)) for s, v in pairs])


def _levels(image: Array, preprocessing: Preprocessing) -> Array:
    """The pixels [H, W, C] that were preprocessed to ``image`` [C, H, W]."""
    moments = preprocessing.mean, preprocessing.std
    mean, std = (np.array(v, np.float64)[:, None, None] for v in moments)
    scaled = image.astype(np.float64) * std + mean
    return np.asarray(scaled / preprocessing.scale).transpose(1, 2, 0)


def _picture(levels: Array) -> bytes:
    """A small PNG, or a JPEG for what is no drawing, of levels [H, W, C] up to 255."""
    pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(drawn.size) <= _DRAWN:
        drawn.save(file, "PNG")
    else:
        drawn.save(file, "JPEG", quality=85)
    return file.getvalue()
