"""Take the norms out of an ExportedProgram, then save it as .pt2 for plain torch.

    python examples/swap_in_exported_program.py [FOLDER]

A transformers ViT, trained on scikit-learn's digits, is captured with torch.export. Each LayerNorm
becomes an affine map fitted to unlabelled images, and the readers absorb it. The program that
torch.export.load reads back from vit-norm-free.pt2 needs nothing of normswap. Needs transformers
and scikit-learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import normswap as ns
from normswap.assets import digits
from normswap.io.sources.packages import import_extra
from normswap.passes import Affine, Fold
from normswap.pipelines import ProgramPass


def norms_in(program: torch.export.ExportedProgram) -> int:
    return sum(node.target is torch.ops.aten.layer_norm.default for node in program.graph.nodes)


def main(folder: Path) -> tuple[float, float]:
    """Returns the accuracy on test images: the original's and the norm-free program's."""
    transformers = import_extra("transformers", "this example")  # also beside a CPU build of torch
    data = digits.load_digits_split()
    images = torch.from_numpy(data.test_images)
    vit = transformers.ViTForImageClassification.from_pretrained(digits.DIGITS_VIT).eval()
    batch = torch.export.Dim("batch")
    original = torch.export.export(
        vit, (), {"pixel_values": images[:2]}, dynamic_shapes={"pixel_values": {0: batch}}
    )

    calibration = ns.load_data(data.train_images, ns.load(original))
    program = original
    for step in (Affine(data=calibration, refit_writers=True), Fold()):
        swap = ProgramPass(step)
        program = swap(program)
        print(f"{type(step).__name__}: {len(swap.last.done)} norms")
        for site, reason in swap.last.skipped:
            print(f"  {site.name} was left alone: {reason}")
    path = folder / "vit-norm-free.pt2"
    torch.export.save(program, path)

    accuracies = []
    for name, found in (("original", original), (str(path), torch.export.load(path))):
        with torch.no_grad():
            answers = found.module()(pixel_values=images).logits.argmax(-1).numpy()
        accuracies.append(float((answers == data.test_labels).mean()))
        print(f"{name}: {norms_in(found)} LayerNorms, accuracy {accuracies[-1]:.1%}")
    return accuracies[0], accuracies[1]


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
