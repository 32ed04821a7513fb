"""Export a torch module to ONNX, then swap the norms of the ONNX model that comes out.

    python examples/swap_after_onnx_export.py [FOLDER]

The module spells its LayerNorms out by hand, as much research code does, so torch.onnx.export does
not know them for norms. The ONNXProgram holds an onnx_ir model, which a pass of normswap takes:
every spelling is found, proven and written as one LayerNormalization. Writes vit.onnx and runs it
in ONNX Runtime beside the original. Needs timm.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnxruntime
import torch

from normswap.io.sources.packages import import_extra
from normswap.passes import Fused
from normswap.pipelines import OnnxPass


class SpelledOut(torch.nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias


def main(folder: Path) -> float:
    """Returns the largest difference from the original's logits."""
    timm = import_extra("timm", "this example")  # also beside a CPU build of torch
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, norm_layer=SpelledOut
    ).eval()
    images = torch.randn(4, 3, 32, 32)
    program = torch.onnx.export(
        vit, (images,), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None

    before = Counter(node.op_type for node in program.model.graph)
    fuse = OnnxPass(Fused())
    program.model = fuse(program.model).model
    after = Counter(node.op_type for node in program.model.graph)
    print(f"{len(fuse.last.done)} norms fused, {before.total()} nodes became {after.total()}")
    for name in ("ReduceMean", "Sqrt", "LayerNormalization"):
        print(f"{name}: {before[name]} before, {after[name]} after")

    path = folder / "vit.onnx"
    program.save(path)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    with torch.no_grad():
        difference = (torch.from_numpy(logits) - vit(images)).abs().max().item()
    print(f"{path}: logits differ from the original's by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
