"""Operators that move, copy or pick elements, over the field.

They are run once on the numbers of the elements' places, which tells where each element of the
result comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normswap.field.exact import Exact
from normswap.field.node import At, Uncovered, rule_for
from normswap.graph.graph import Array

_PLACE = float(1 << 40)


@rule_for("Transpose")
def _transpose(at: At) -> Sequence[Exact]:
    perm = at.attributes.get("perm") or tuple(reversed(range(len(at[0].shape))))
    return [at[0].transposed(perm)]


@rule_for("Reshape")
@rule_for("Flatten")
@rule_for("Squeeze")
@rule_for("Unsqueeze")
def _reshape(at: At) -> Sequence[Exact]:
    return [at[0].reshaped(at.plain()[0].shape)]


@rule_for("Trilu")
@rule_for("aten.gather.default")
@rule_for("aten.tril.default")
@rule_for("aten.triu.default")
@rule_for("GatherElements")
@rule_for("aten.index.Tensor")
def moved_by(at: At) -> Sequence[Exact | None]:
    known = at.node.operator
    if known.move == "resize" and at.attributes.get("mode") not in ("nearest", b"nearest"):
        return []
    if known.quantises or at.attributes.get("reduction", "none") not in ("none", b"none"):
        return []
    pieces: list[Exact] = []
    places: dict[int, Array] = {}
    start = 0
    for place, read in enumerate(at.inputs):
        if isinstance(read, Exact):
            size = read.shadow.size
            same = next((i for i in places if at.node.inputs[i] is at.node.inputs[place]), None)
            if same is None:
                places[place] = (_PLACE + start + np.arange(size)).reshape(read.shape)
                pieces.append(read)
                start += size
    origins = at.plain(places)
    results: list[Exact | None] = [None] * len(at.node.outputs)
    for place, origin in zip(at.wanted, origins, strict=True):
        results[place] = _picked(at, pieces, np.asarray(origin, np.float64), start)
    return results


def _picked(at: At, pieces: Sequence[Exact], origin: Array, total: int) -> Exact:
    """The elements that come from places of ``pieces``, and numbers that come from nowhere."""
    field = at.field
    moved = origin >= _PLACE
    where = np.where(moved, origin - _PLACE, 0).astype(np.int64)
    if np.any(where >= total) or np.any(np.where(moved, origin, _PLACE) != where + _PLACE):
        raise Uncovered(f"{at.node.op} '{at.node.output.name}' does more than move")
    whole = bool(moved.all())
    ends = np.cumsum([piece.shadow.size for piece in pieces])
    used = np.unique(np.searchsorted(ends, where[moved], side="right"))
    if len(used) == 1:  # the others only give it a shape
        start = int(ends[used[0]]) - pieces[used[0]].shadow.size
        pieces, where = [pieces[used[0]]], np.where(moved, where - start, 0)
    first = pieces[0]
    if whole and len(pieces) == 1 and first.source is not None:
        return field.constant(first.source.reshape(-1)[where])
    if whole and len(pieces) == 1:
        return first.picked(where)
    growth = first.growth
    for piece in pieces[1:]:
        growth = growth.joined(piece.growth)
    rest = None if whole else field.constant(np.where(moved, 0.0, origin))
    growth = growth if rest is None else growth.joined(rest.growth)

    def pick(flat: Sequence[Array], literal: Array | None) -> Array:
        array = (
            flat[0].reshape(-1) if len(flat) == 1 else np.concatenate([f.reshape(-1) for f in flat])
        )
        return (
            array[where]
            if literal is None
            else np.where(moved, array[where] if array.size else 0.0, literal)
        )

    residues = np.stack(
        [
            pick([p.residue(j) for p in pieces], None if rest is None else rest.residue(j))
            for j in range(field.residues.count)
        ]
    )
    shadow = pick([p.shadow for p in pieces], None if rest is None else rest.shadow)
    return Exact(shadow, residues, growth)
