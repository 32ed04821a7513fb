"""Groups of tokens that are fitted apart from each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normswap.fit.frontier import Batches
from normswap.fit.rows import Layout
from normswap.graph.graph import Array, Graph
from normswap.norms.site import Site

TOKENS = ("all", "class", "position")


def special_positions(graph: Graph, sites: Sequence[Site], batches: Batches) -> Array | None:
    """Which positions of a tower hold class, register or [BOS] tokens: booleans [positions].

    They are those that are the same for all samples where the tower's first norm reads them: what
    stands there comes from the weights alone. None where no position is, or where all are.
    """
    first, batch = sites[0], batches[0]
    axes = first.axes
    count = len(next(iter(batch.values())))
    x = graph.value(first.input)
    if len(axes) != 1 or count < 2:
        return None
    inputs = [graph.value(name) for name in batch]
    (array,) = graph.slice(inputs, [x])(list(batch.values()))
    rows = Layout.of(array.shape, axes[0], count).rows(array)
    same = (rows == rows[:1]).all(axis=(0, 2))
    return None if same.all() or not same.any() else same


def groups(tokens: str, special: Array | None, positions: int) -> Array:
    """The group of every position, integers [positions]: 'all' has one; 'class' sets ``special``
    positions apart, where the value has them; 'position' has a group for each."""
    if tokens == "position":
        return np.arange(positions)
    if tokens == "class" and special is not None and len(special) == positions:
        return special.astype(np.intp)
    return np.zeros(positions, np.intp)
