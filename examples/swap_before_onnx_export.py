"""Swap the norms of a captured torch module, then export it to ONNX.

    python examples/swap_before_onnx_export.py [FOLDER]

A timm ViT is captured with torch.export. Its LayerNorms become RMSNorms, which is exact: every
linear layer that writes to the residual stream gets its mean over channels subtracted, so there is
none left to subtract. Then torch.onnx.export writes vit-rmsnorm.onnx, and ONNX Runtime runs it
beside the original. Needs timm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import torch

from normswap.io.sources.packages import import_extra
from normswap.passes import RmsNorm
from normswap.pipelines import ProgramPass


def main(folder: Path) -> float:
    """Returns the largest difference from the original's logits."""
    timm = import_extra("timm", "this example")  # also beside a CPU build of torch
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10
    ).eval()
    images = torch.randn(4, 3, 32, 32)
    batch = torch.export.Dim("batch")
    program = torch.export.export(vit, (images,), dynamic_shapes=({0: batch},))

    swap = ProgramPass(RmsNorm())
    swapped = swap(program)
    print(f"{len(swap.last.done)} LayerNorms became RMSNorms")
    for site, reason in swap.last.skipped:
        print(f"{site.name} was left alone: {reason}")

    path = folder / "vit-rmsnorm.onnx"
    torch.onnx.export(
        swapped,
        f=path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        opset_version=23,  # the first with RMSNormalization
        verbose=False,
    )
    images = torch.randn(7, 3, 32, 32)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    with torch.no_grad():
        difference = (torch.from_numpy(logits) - vit(images)).abs().max().item()
    print(f"{path}: logits differ from the original's by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
