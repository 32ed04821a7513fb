"""Which samples a step sees, as it follows from a seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from normswap import distributed
from normswap.graph.graph import Array


def sample_indices(count: int, batch: int, seed: int, step: int) -> Array:
    """Which of ``count`` samples are in the batch of a step; integers [batch].

    Every epoch is a permutation of its own. A batch may end one and begin the next, so that there
    is no last one that is smaller, and samples are seen equally often.
    """
    parts, first, end = [], step * batch, (step + 1) * batch
    while first < end:
        epoch, offset = divmod(first, count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        parts.append(order[offset : offset + end - first])
        first += len(parts[-1])
    return np.concatenate(parts)


def own_indices(count: int, batch: int, seed: int, step: int, parts: int = 1) -> Array:
    """Those of them that are this process's, an equal share.

    The batch is split into ``parts`` (``TrainOptions.accumulate``) first and each of them among the
    processes, so that what a BatchNorm sees at once is the same for any number of processes.
    """
    indices = sample_indices(count, batch, seed, step).reshape(parts, distributed.world(), -1)
    return np.asarray(indices[:, distributed.rank()].reshape(-1))


def shuffled(
    arrays: Mapping[str, Array], batch: int, seed: int, parts: int = 1
) -> Callable[[int], dict[str, torch.Tensor]]:
    """What ``train`` takes, of arrays in memory by name, [N, ...] each."""
    count = len(next(iter(arrays.values())))

    def at(step: int) -> dict[str, torch.Tensor]:
        own = own_indices(count, batch, seed, step, parts)
        return {name: torch.from_numpy(np.array(array[own])) for name, array in arrays.items()}

    return at
