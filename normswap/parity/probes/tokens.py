"""Token ids and masks for text inputs."""

from __future__ import annotations

import math

import numpy as np

from normswap.graph.graph import Array, Graph
from normswap.model import InputSpec
from normswap.parity.probes.kinds import ROWS


def vocabulary(graph: Graph, spec: InputSpec) -> int | None:
    """The rows of the smallest constant table that an integer input is an index into."""
    if not np.issubdtype(spec.dtype, np.integer):
        return None
    rows: list[int] = []
    stack, seen = [graph.value(spec.name)], set()
    while stack:
        value = stack.pop()
        for node, index in value.uses:
            table = node.input(0)
            if node.op == "Gather" and index == 1 and table is not None and table.is_constant:
                if table.rank == 2 and table.shape and node.attributes.get("axis") == 0:
                    rows.append(table.shape[0])
            elif node.operator.passes_through and index == 0 and node not in seen:
                seen.add(node)
                stack.append(node.output)
    return min(rows, default=None)


def up_to_eos(rng: np.random.Generator, shape: tuple[int, ...], draw: int) -> Array:
    """True up to each row's [EOS], whose places go from the first to the last.

    Several draws of few rows go on where the one before ended.
    """
    rows, length = math.prod(shape[:-1]), shape[-1]
    places = np.linspace(0, length - 1, max(rows, ROWS)).round().astype(int)
    if rows >= ROWS:
        places = rng.permutation(places)
    else:  # a stride coprime to the number, so that any few are spread over the sequence
        places = places[(5 * (draw * rows + np.arange(rows)) + len(places) - 1) % len(places)]
    return (np.arange(length) <= places[:, None]).reshape(shape)


def token_ids(rng: np.random.Generator, kept: Array, vocabulary: int, repeat: bool) -> Array:
    """Random ids where ``kept``, the largest id at the last place kept, then zeros.

    ``repeat``: one id throughout a row.
    """
    shape = (*kept.shape[:-1], 1) if repeat else kept.shape
    first = min(1, vocabulary - 1)  # zero is left to the padding
    ids = rng.integers(first, max(vocabulary - 1, first + 1), shape)
    ids = np.where(kept, ids, 0)
    np.put_along_axis(ids, kept.sum(-1, keepdims=True) - 1, vocabulary - 1, axis=-1)
    return ids
