"""Random images for the zoo's models: to fit a swap to, and others to hold it to."""

from __future__ import annotations

import numpy as np

from tests.zoo.exports import zoo_model


def images(name: str, count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Images that the model ``name`` takes, by the name of its input."""
    zoo = zoo_model(name)
    shape = (count, *zoo.inputs[zoo.image].shape[1:])
    drawn = np.random.default_rng(seed).standard_normal(shape)
    return {zoo.image: (0.5 + 2 * drawn).astype(np.float32)}


def feeds(name: str) -> dict[str, np.ndarray]:
    """Images that no fit has seen, and the texts that the model takes beside them."""
    given = {key: tensor.numpy() for key, tensor in zoo_model(name).inputs.items()}
    return {**given, **images(name, 12, seed=1)}
