"""The two trained models of the demo: what they read, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normswap.assets import digits
from normswap.graph.graph import Array
from normswap.model import Model

IMAGES, TEXTS, MASK = "pixel_values", "input_ids", "attention_mask"
_PROOF_SIZE = 32


@dataclass(frozen=True)
class Task:
    """A trained model and its data.

    ``calibration``: the training images, without their labels. ``test``: the test images, each
    with a caption of its class where the model reads text: all captions of a class occur.
    ``labels``: those of the test images.
    """

    folder: Path
    calibration: Mapping[str, Array]
    test: Mapping[str, Array]
    labels: Array
    _data: digits.DigitsSplit

    @property
    def name(self) -> str:
        return self.folder.name

    def accuracy(self, model: Model) -> float:
        """The share of test images that ``model`` classifies rightly, a CLIP zero-shot."""
        return self.share_right(self.answers(model))

    def share_right(self, answers: Array) -> float:
        """The share of the test images' labels that ``answers`` [540] are."""
        return float((answers == self._data.test_labels).mean())

    def answers(self, model: Model) -> Array:
        """The class of each test image by ``model``, integers [540]; a CLIP's zero-shot."""
        if TEXTS not in self.test:
            logits = model.run({IMAGES: self._data.test_images})["logits"]
            return np.asarray(logits.argmax(-1))
        captions = digits.class_caption_ids()
        flat = captions.reshape(-1, captions.shape[-1])
        outputs = model.run(_known(model, _clip_feeds(self._data.test_images, flat)))
        texts = outputs["text_embeds"].reshape(*captions.shape[:2], -1)
        return np.asarray(digits.zero_shot_labels(outputs["image_embeds"], texts))

    def calibration_for(self, model: Model) -> dict[str, Array]:
        return _known(model, self.calibration)

    def proof_for(self, model: Model) -> dict[str, Array]:
        """Some of the test inputs: what an exact contract is also held to."""
        return {name: array[:_PROOF_SIZE] for name, array in self.test_for(model).items()}

    def test_for(self, model: Model) -> dict[str, Array]:
        return _known(model, self.test)


def tasks() -> list[Task]:
    """digits-vit and digits-clip. Raises NormswapError without scikit-learn."""
    data = digits.load_digits_split()
    calibration = {IMAGES: data.train_images}
    captions = digits.class_caption_ids()
    labels = data.test_labels
    earlier = [int((labels[:row] == label).sum()) for row, label in enumerate(labels)]
    turn = np.array(earlier) % captions.shape[1]
    described = _clip_feeds(data.test_images, captions[labels, turn])
    return [
        Task(digits.DIGITS_VIT, calibration, {IMAGES: data.test_images}, labels, data),
        Task(digits.DIGITS_CLIP, calibration, described, labels, data),
    ]


def _clip_feeds(images: Array, ids: Array) -> dict[str, Array]:
    mask = (ids != digits.VOCABULARY[digits.PAD]).astype(ids.dtype)
    return {IMAGES: images, TEXTS: ids, MASK: mask}


def _known(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Those of ``feeds`` that ``model`` takes."""
    taken = {spec.name for spec in model.inputs}
    return {name: array for name, array in feeds.items() if name in taken}
