"""Bring a transformers CLIP from its folder to ONNX: as it is, and with a norm-free image tower.

    python examples/clip_folder_to_onnx.py [FOLDER]

The folder is that of a small CLIP trained on scikit-learn's digits; for another one, give its own
images. clip.onnx is held to the exact contract against the folder's model. In clip-norm-free.onnx
each LayerNorm of the image tower has become an affine map fitted to unlabelled images, and the
neighbouring weights have absorbed it: what that costs is measured. torch's exporter takes most of
the time, so it runs once and the ONNX model is swapped. Needs transformers and scikit-learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import normswap as ns
from normswap.assets import digits
from normswap.parity.report import ValidationReport


def main(folder: Path) -> tuple[ValidationReport, ValidationReport]:
    """Returns the reports on the two files."""
    path, norm_free_path = folder / "clip.onnx", folder / "clip-norm-free.onnx"
    data = digits.load_digits_split()
    clip = ns.load(digits.DIGITS_CLIP)
    ns.save(clip, path)
    original = ns.load(path)
    exact = ns.validate(clip, original)
    verdict = "the same" if exact.passed else "not the same"
    print(f"{path}: {len(ns.locate(original))} norms, {verdict} as the folder's model")

    swapped = ns.swap(original, ns.Affine(refit_writers=True), data=data.train_images)
    folded = ns.fold(swapped.model)
    for step, title in ((swapped, "swapped"), (folded, "folded")):
        skipped = [f"{site.name} was left alone: {reason}" for site, reason in step.skipped]
        print(f"{len(step.done)} norms {title}", *step.notes, *skipped, sep="\n  ")
    ns.save(folded.model, norm_free_path)

    norm_free = ns.load(norm_free_path)
    captions = digits.class_caption_ids()[data.test_labels, 0]
    mask = (captions != digits.VOCABULARY[digits.PAD]).astype(np.int64)
    pairs = {"pixel_values": data.test_images, "input_ids": captions, "attention_mask": mask}
    measured = ns.validate(clip, norm_free, data=pairs, contract="approximate")
    cosines = [f"{output.name} {output.cosine_mean:.4f}" for output in measured.outputs]
    print(f"{norm_free_path}: {len(ns.locate(norm_free))} norms, cosine of {', '.join(cosines)}")
    return exact, measured


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
