"""Serve CLIP models in ONNX Runtime: zero-shot classification of handwritten digits.

    python examples/clip_folder_to_onnx.py
    python examples/classify_in_onnxruntime.py clip.onnx clip-norm-free.onnx

Each class is described by captions such as "a photo of the digit seven"; an image belongs to the
class whose captions are nearest. Prints how many of scikit-learn's 540 test images each model gets
right, and how often it answers as the first one does. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from normswap.assets import digits


def classified(path: Path, images: digits.Floats) -> digits.Ints:
    """The digit on each of ``images`` [N, 1, 8, 8] by the model at ``path``, [N]."""
    captions = digits.class_caption_ids()  # [10 classes, captions of each, tokens]
    tokens = captions.reshape(-1, captions.shape[-1])
    mask = (tokens != digits.VOCABULARY[digits.PAD]).astype(np.int64)
    session = onnxruntime.InferenceSession(path)
    image_embeds, text_embeds = session.run(
        ["image_embeds", "text_embeds"],
        {"pixel_values": images, "input_ids": tokens, "attention_mask": mask},
    )
    return digits.zero_shot_labels(image_embeds, text_embeds.reshape(*captions.shape[:2], -1))


def main(paths: list[Path]) -> list[float]:
    """Returns the accuracy of each model."""
    data = digits.load_digits_split()
    answers = [classified(path, data.test_images) for path in paths]
    accuracies = [float((given == data.test_labels).mean()) for given in answers]
    for path, given, accuracy in zip(paths, answers, accuracies, strict=True):
        agreement = (given == answers[0]).mean()
        print(f"{path}: accuracy {accuracy:.1%}, as {paths[0].name} in {agreement:.1%}")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="CLIP.onnx")
    main(parser.parse_args().paths)
