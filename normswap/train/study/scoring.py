"""How many labels a model gets right."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from normswap.graph.graph import Array
from normswap.model import Model

_BATCH = 256


@torch.no_grad()
def module_accuracy(
    module: nn.Module, feeds: Mapping[str, Array], labels: Array, scores: int
) -> float:
    """The share of ``labels`` [N] at which output number ``scores`` [N, C] is highest."""

    def answer(part: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(array) for name, array in part.items()}
        return np.asarray(pytree.tree_leaves(module(**tensors))[scores].argmax(-1))

    return _share(answer, feeds, labels)


def model_accuracy(model: Model, feeds: Mapping[str, Array], labels: Array, scores: int) -> float:
    """The same of a ``Model``, of either kind."""
    return _share(lambda part: list(model.run(part).values())[scores].argmax(-1), feeds, labels)


def most_frequent(labels: Array) -> float:
    """The share of the most frequent label: what always answering the same gets right."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _share(
    answer: Callable[[Mapping[str, Array]], Array], feeds: Mapping[str, Array], labels: Array
) -> float:
    right = 0
    for first in range(0, len(labels), _BATCH):
        part = {name: np.array(array[first : first + _BATCH]) for name, array in feeds.items()}
        right += int((answer(part) == labels[first : first + _BATCH]).sum())
    return right / len(labels)
