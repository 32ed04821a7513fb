"""Compile a ViT with torch.compile and normswap's kernels, and hold it to eager torch.

    python examples/compile_with_kernels.py

An installed normswap registers the backend by its name: torch.compile(model, backend="normswap").
This passes the function itself, which needs no installation. Without a C++ compiler for Inductor
the model runs eagerly, kernels included.
"""

from __future__ import annotations

import torch
from transformers import ViTForImageClassification

from normswap.assets import digits
from normswap.hosts.torch_compile import backend


def main(then: str = "inductor") -> float:
    """Returns the largest difference from eager torch."""
    model = ViTForImageClassification.from_pretrained(digits.DIGITS_VIT).eval()
    images = torch.from_numpy(digits.load_digits_split().test_images)
    compiled = torch.compile(model, backend=backend, options={"then": then})
    with torch.inference_mode():
        scores, eager = compiled(images).logits, model(images).logits
    difference = float((scores - eager).abs().max())
    agree = float((scores.argmax(-1) == eager.argmax(-1)).float().mean())
    print(f"largest difference from eager {difference:.1e}, the same class for {agree:.1%}")
    return difference


if __name__ == "__main__":
    main()
