"""The data behind the two trained models of this folder: digits, their captions, their tokens.

Images are scikit-learn's 1797 handwritten digits (8x8, 17 grey levels), always split the same
way. Captions are short English sentences over a vocabulary of about 40 words. Nothing here needs
torch or transformers, and scikit-learn only inside `load_digits_split`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from normswap.errors import NormswapError
from normswap.extras import install_command

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

ASSETS: Final = Path(__file__).resolve().parent
DIGITS_VIT: Final = ASSETS / "digits-vit"
DIGITS_CLIP: Final = ASSETS / "digits-clip"

# A pixel in 0..16 becomes (pixel / 16 - 0.5) / 0.5, in -1..1: what preprocessor_config.json says.
PIXEL_MAX: Final = 16
PIXEL_MEAN: Final = 0.5
PIXEL_STD: Final = 0.5
BACKGROUND: Final = (0.0 - PIXEL_MEAN) / PIXEL_STD

TEST_SIZE: Final = 540
SPLIT_SEED: Final = 0

WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES: Final = (
    "{}",
    "the digit {}",
    "the number {}",
    "a photo of the digit {}",
    "a photo of the number {}",
    "a small drawing of a {}",
    "a handwritten {}",
    "a scan of the number {} in black ink",
    "this is the digit {} written by hand",
    "someone wrote the number {} on a piece of paper",
)
# CAPTIONS[label]: each template with the digit's word ("seven") and then with its numeral ("7").
CAPTIONS: Final = tuple(
    tuple(template.format(name) for template in TEMPLATES for name in (word, str(label)))
    for label, word in enumerate(WORDS)
)

# As in CLIP, <bos> and <eos> are the two largest ids; <eos> is far from 2, an id that
# transformers' CLIP treats apart. A caption ends at its first <eos>; <pad> only comes after it.
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
CONTEXT_LENGTH: Final = 12
VOCABULARY: Final = {
    token: index
    for index, token in enumerate(
        [PAD, UNK, *sorted({w for group in CAPTIONS for c in group for w in c.split()}), BOS, EOS]
    )
}


@dataclass(frozen=True)
class DigitsSplit:
    """Normalised digits: images float32 `[N, 1, 8, 8]` in -1..1, labels int64 `[N]` in 0..9."""

    train_images: Floats
    train_labels: Ints
    test_images: Floats
    test_labels: Ints


def load_digits_split() -> DigitsSplit:
    """Return the one split that every number about the assets refers to.

    1257 images train and 540 test, stratified by label: the same on every call and machine.
    Raises `NormswapError` when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise NormswapError(
            f"the digits need scikit-learn, which is not installed; {install_command('demo')}"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = ((pixels / PIXEL_MAX - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)
    images = images.reshape(-1, 1, 8, 8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SIZE, random_state=SPLIT_SEED, stratify=labels
    )
    labels = labels.astype(np.int64)
    return DigitsSplit(images[train], labels[train], images[test], labels[test])


def augment(
    images: Floats, generator: np.random.Generator, shift: int = 1, noise: float = 0.2
) -> Floats:
    """Return a copy with each image moved by up to `shift` pixels each way, and Gaussian noise.

    `images` is float32 `[N, 1, H, W]`; so is the result. Uncovered pixels are background.
    """
    count, _, height, width = images.shape
    border = ((0, 0), (0, 0), (shift, shift), (shift, shift))
    padded = np.pad(images, border, constant_values=BACKGROUND)
    top, left = generator.integers(0, 2 * shift + 1, size=(2, count, 1, 1))
    rows = top + np.arange(height)[:, None]
    columns = left + np.arange(width)[None, :]
    moved: Floats = padded[np.arange(count)[:, None, None], 0, rows, columns][:, None]
    moved += noise * generator.standard_normal(moved.shape, dtype=np.float32)
    return moved


def caption_ids(captions: Sequence[str]) -> Ints:
    """Return token ids, int64 `[len(captions), CONTEXT_LENGTH]`: <bos> words <eos> <pad>...

    The same ids as digits-clip's tokenizer with `padding="max_length", truncation=True`:
    words are lower-cased and split at white space, unknown ones become <unk>, and a caption too
    long loses its last words but keeps its <eos>.
    """
    ids = np.full((len(captions), CONTEXT_LENGTH), VOCABULARY[PAD], dtype=np.int64)
    for row, caption in zip(ids, captions, strict=True):
        words = caption.lower().split()[: CONTEXT_LENGTH - 2]
        tokens = [VOCABULARY.get(token, VOCABULARY[UNK]) for token in (BOS, *words, EOS)]
        row[: len(tokens)] = tokens
    return ids


def class_caption_ids() -> Ints:
    """Return the ids of `CAPTIONS`, int64 `[10, captions per class, CONTEXT_LENGTH]`."""
    return np.stack([caption_ids(group) for group in CAPTIONS])


def zero_shot_labels(image_embeds: NDArray[Any], caption_embeds: NDArray[Any]) -> Ints:
    """Return the label of each image, int64 `[N]`: the class whose captions are nearest.

    `image_embeds` is `[N, D]` and `caption_embeds` `[10, captions per class, D]`, of any scale. A
    class is the mean of its captions' unit vectors, as in CLIP's prompt ensembles.
    """
    unit = caption_embeds / np.linalg.norm(caption_embeds, axis=-1, keepdims=True)
    classes = unit.mean(axis=1)
    classes = classes / np.linalg.norm(classes, axis=-1, keepdims=True)
    return np.asarray((image_embeds @ classes.T).argmax(axis=1), dtype=np.int64)
