"""Train normswap/assets/digits-vit: a LayerNorm ViT on scikit-learn's 8x8 digits, from scratch.

    python examples/train_digits_vit.py [--seed N] [--depth N] [--width N] [-o FOLDER]

About a minute on one CPU core; the same seed gives the same model on the same machine. Needs
transformers and scikit-learn. Writes a Hugging Face folder and prints the test accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy

from normswap.assets import digits
from normswap.io.sources.packages import ensure_torchvision_importable

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 100, 64, 2e-3, 0.05, 0.1

CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
tags: [normswap, vit, layernorm]
model-index:
- name: digits-vit
  results:
  - task:
      type: image-classification
    dataset:
      name: scikit-learn digits, 540 test images
      type: scikit-learn-digits
    metrics:
    - type: accuracy
      value: {accuracy:.2f}
---
# digits-vit

A small Vision Transformer with LayerNorm, trained for normswap's demo and tests. transformers'
`ViTForImageClassification`: 8x8 grey images, patch 2 (16 patches and a class token), width {width},
depth {depth}, 4 heads, MLP {mlp}, no dropout, {parameters:,} parameters, {norms} LayerNorms.

**Test accuracy: {accuracy:.2f} %** ({right} of {total}), on the fixed split of
`normswap.assets.digits.load_digits_split` (1257 train, 540 test).

    python examples/train_digits_vit.py --seed {seed}

Cross-entropy with label smoothing {smoothing} from random weights, on the 1257 training images
moved by up to a pixel and with Gaussian noise (std 0.2); AdamW, {epochs} epochs of batches of
{batch}, rate {rate} in one cycle, weight decay {decay}, gradients clipped to norm 1; float32, one
thread, seed {seed}, the last epoch kept. Made with torch {torch}, transformers {transformers}.

Input: `pixel_values` float32 [N, 1, 8, 8], (pixel / 16 - 0.5) / 0.5 of pixels in 0..16.

Licence: MIT. The data is the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0), as scikit-learn ships it.
"""


def train(seed: int, depth: int, width: int) -> transformers.ViTForImageClassification:
    """Train from scratch; `seed` sets the weights, the order of the images and the augmentation."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    data = digits.load_digits_split()
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        encoder_stride=2,
        num_channels=1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(digits.WORDS)),
        label2id={word: label for label, word in enumerate(digits.WORDS)},
    )
    model = transformers.ViTForImageClassification(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY)
    count = len(data.train_labels)
    steps = EPOCHS * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    console = Console(stderr=True)
    for _ in track(range(EPOCHS), "training digits-vit", console=console):
        images = torch.from_numpy(digits.augment(data.train_images, generator))
        labels = torch.from_numpy(data.train_labels)
        for batch in torch.from_numpy(generator.permutation(count)).split(BATCH):
            logits = model(pixel_values=images[batch]).logits
            loss = cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    return model


@torch.inference_mode()
def count_right(model: transformers.ViTForImageClassification) -> int:
    """Return how many of the test images the model labels right."""
    data = digits.load_digits_split()
    logits = model(pixel_values=torch.from_numpy(data.test_images)).logits
    return int((logits.argmax(1).numpy() == data.test_labels).sum())


def save(
    model: transformers.ViTForImageClassification, right: int, seed: int, folder: Path
) -> None:
    """Write the model, how to prepare its images, and its card as a Hugging Face folder."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 8, "width": 8},
        "do_rescale": True,
        "rescale_factor": 1 / digits.PIXEL_MAX,
        "do_normalize": True,
        "image_mean": [digits.PIXEL_MEAN],
        "image_std": [digits.PIXEL_STD],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    card = CARD.format(
        accuracy=100 * right / digits.TEST_SIZE,
        right=right,
        total=digits.TEST_SIZE,
        parameters=model.num_parameters(),
        width=model.config.hidden_size,
        depth=model.config.num_hidden_layers,
        mlp=model.config.intermediate_size,
        norms=2 * model.config.num_hidden_layers + 1,
        seed=seed,
        epochs=EPOCHS,
        batch=BATCH,
        rate=RATE,
        decay=DECAY,
        smoothing=SMOOTHING,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--depth", type=int, default=6, help="blocks, default: 6")
    parser.add_argument("--width", type=int, default=48, help="channels, default: 48")
    parser.add_argument("-o", "--output", type=Path, default=digits.DIGITS_VIT, metavar="FOLDER")
    options = parser.parse_args()
    ensure_torchvision_importable()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = train(options.seed, options.depth, options.width)
    right = count_right(model)
    save(model, right, options.seed, options.output)
    print(f"test accuracy {100 * right / digits.TEST_SIZE:.2f} %, saved in {options.output}")


if __name__ == "__main__":
    main()
