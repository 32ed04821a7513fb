"""Pictures as a model's preprocessing gives them, noise and smooth ones."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Array
from normswap.io.preprocessing import Preprocessing

_WAVES = 4


def pictures(
    rng: np.random.Generator, shape: tuple[int, ...], preprocessing: Preprocessing
) -> Array:
    """[N, C, H, W], float32: pixels of 0..255 of C channels, normalised as the model wants them.

    The even rows are uniform noise, the odd ones sums of a few waves per channel.
    """
    rows = []
    for row in range(shape[0]):
        pixels = _smooth(rng, shape[1:]) if row % 2 else rng.integers(0, 256, shape[1:])
        rows.append(preprocessing.normalised(pixels.astype(np.uint8).transpose(1, 2, 0)))
    return np.stack(rows)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """[C, H, W] between 0 and 255, both of which every channel reaches."""
    channels, height, width = shape
    down, across, phases = rng.uniform(-1.5, 1.5, (3, channels, _WAVES, 1, 1))
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    waves = np.cos(2 * np.pi * (down * y + across * x + phases)).sum(1)
    low, high = (f(waves, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return np.asarray(255 * (waves - low) / np.where(high > low, high - low, 1))
