"""Train normswap/assets/digits-clip: a LayerNorm CLIP on digits and captions, from scratch.

    python examples/train_digits_clip.py [--seed N] [-o FOLDER]

About 80 seconds on one CPU core; the same seed gives the same model on the same machine. Needs
transformers, tokenizers and scikit-learn. Writes a Hugging Face folder with its tokenizer and
prints the zero-shot accuracy on the test images.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy

from normswap.assets import digits
from normswap.io.sources.packages import ensure_torchvision_importable

EPOCHS, BATCH, RATE, DECAY, MAX_SCALE = 60, 64, 2e-3, 0.05, 100.0

CARD = """---
license: mit
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [normswap, clip, layernorm]
model-index:
- name: digits-clip
  results:
  - task:
      type: zero-shot-image-classification
    dataset:
      name: scikit-learn digits, 540 test images
      type: scikit-learn-digits
    metrics:
    - type: accuracy
      value: {accuracy:.2f}
---
# digits-clip

A small CLIP with LayerNorm, trained for normswap's demo and tests. transformers' `CLIPModel`,
{parameters:,} parameters, projection 32, no dropout:

| tower | input | width | depth | heads | MLP | LayerNorms |
|---|---|---|---|---|---|---|
| image | 8x8 grey, patch 2 (16 patches and a class token) | 48 | 6 | 4 | 192 | 14 |
| text | {context} tokens of a vocabulary of {vocabulary} words | 48 | 4 | 4 | 192 | 9 |

**Zero-shot test accuracy: {accuracy:.2f} %** ({right} of {total}), on the fixed split of
`normswap.assets.digits.load_digits_split` (1257 train, 540 test). Each class is the mean of the
unit embeddings of its {captions} captions ({templates} templates, with "seven" and with "7").

    python examples/train_digits_clip.py --seed {seed}

Contrastive, both towers from random weights: {batch} images a batch, each with one of its class's
captions at random. In both directions the target is spread evenly over all pairs of the same
class, as a batch holds several. Images are moved by up to a pixel and get Gaussian noise (std
0.2). AdamW, {epochs} epochs, rate {rate} in one cycle, weight decay {decay} (none on the logit
scale, held below {max_scale:.0f}), gradients clipped to norm 1; float32, one thread, seed {seed},
the last epoch kept. Made with torch {torch}, transformers {transformers}.

Input: `pixel_values` float32 [N, 1, 8, 8], (pixel / 16 - 0.5) / 0.5 of pixels in 0..16;
`input_ids` int64 [M, {context}] from `tokenizer(texts, padding="max_length", truncation=True)`, or
from `normswap.assets.digits.caption_ids(texts)` without transformers.

Licence: MIT. The data is the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0), as scikit-learn ships it.
"""


def build_model() -> transformers.CLIPModel:
    """Return the model with random weights."""
    vocabulary = digits.VOCABULARY
    vision = {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "projection_dim": 32,
    }
    text = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": digits.CONTEXT_LENGTH,
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 32,
        "pad_token_id": vocabulary[digits.PAD],
        "bos_token_id": vocabulary[digits.BOS],
        "eos_token_id": vocabulary[digits.EOS],
    }
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)
    return transformers.CLIPModel(config)


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of `digits.VOCABULARY` that gives the ids of `digits.caption_ids`."""
    tokenizer = Tokenizer(models.WordLevel(digits.VOCABULARY, unk_token=digits.UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{digits.BOS} $A {digits.EOS}",
        special_tokens=[(t, digits.VOCABULARY[t]) for t in (digits.BOS, digits.EOS)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=digits.CONTEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        pad_token=digits.PAD,
        unk_token=digits.UNK,
        bos_token=digits.BOS,
        eos_token=digits.EOS,
    )


def train(seed: int) -> transformers.CLIPModel:
    """Train from scratch; `seed` sets the weights, the order, the captions, the augmentation."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    data = digits.load_digits_split()
    captions = torch.from_numpy(digits.class_caption_ids())
    model = build_model()
    model.train()
    scale = model.logit_scale
    weights = [p for p in model.parameters() if p is not scale]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": [scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    count = len(data.train_labels)
    steps = EPOCHS * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    console = Console(stderr=True)
    for _ in track(range(EPOCHS), "training digits-clip", console=console):
        images = torch.from_numpy(digits.augment(data.train_images, generator))
        labels = torch.from_numpy(data.train_labels)
        chosen = torch.from_numpy(generator.integers(captions.shape[1], size=count))
        texts = captions[labels, chosen]
        for batch in torch.from_numpy(generator.permutation(count)).split(BATCH):
            logits = model(pixel_values=images[batch], input_ids=texts[batch]).logits_per_image
            same = (labels[batch, None] == labels[None, batch]).float()
            target = same / same.sum(dim=1, keepdim=True)  # symmetric: each row and each column
            loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                scale.clamp_(max=math.log(MAX_SCALE))
    model.eval()
    return model


@torch.inference_mode()
def count_right(model: transformers.CLIPModel) -> int:
    """Return how many of the test images lie nearest the captions of their own class."""
    data = digits.load_digits_split()
    ids = torch.from_numpy(digits.class_caption_ids())
    texts = model.get_text_features(input_ids=ids.flatten(0, 1)).pooler_output
    images = model.get_image_features(pixel_values=torch.from_numpy(data.test_images)).pooler_output
    labels = digits.zero_shot_labels(images.numpy(), texts.unflatten(0, ids.shape[:2]).numpy())
    return int((labels == data.test_labels).sum())


def save(model: transformers.CLIPModel, right: int, seed: int, folder: Path) -> None:
    """Write the model, its tokenizer, how to prepare its images, and its card."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": False,
        "do_resize": True,
        "size": {"height": 8, "width": 8},
        "do_center_crop": False,
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
        context=digits.CONTEXT_LENGTH,
        vocabulary=len(digits.VOCABULARY),
        captions=len(digits.CAPTIONS[0]),
        templates=len(digits.TEMPLATES),
        seed=seed,
        epochs=EPOCHS,
        batch=BATCH,
        rate=RATE,
        decay=DECAY,
        max_scale=MAX_SCALE,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("-o", "--output", type=Path, default=digits.DIGITS_CLIP, metavar="FOLDER")
    options = parser.parse_args()
    ensure_torchvision_importable()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = train(options.seed)
    right = count_right(model)
    save(model, right, options.seed, options.output)
    print(f"zero-shot accuracy {100 * right / digits.TEST_SIZE:.2f} %, saved in {options.output}")


if __name__ == "__main__":
    main()
