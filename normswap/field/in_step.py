"""Evaluates two graphs in step, and computes once what both compute alike.

Most of what an exact pass leaves in a graph it leaves as it is: the same operator reads the same
values. Both graphs go on from product to product, and what the first has computed on the way is
looked up by the second: by operator, options and inputs. A value that the second computes in
another way (a fused norm) and that is equal modulo every prime takes the place of the first one's,
so that what follows is looked up again. The result is the same as that of two evaluations,
the count of arguments included, in little more than the time of one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from normswap.field.evaluation import Evaluation, Side, Walk, equal
from normswap.field.exact import Exact
from normswap.field.node import At, Read
from normswap.field.operators import compute
from normswap.field.values import Field
from normswap.graph.graph import Array, Node


def evaluate_both(
    over: Field, first: Side, second: Side, given: Sequence[Read]
) -> tuple[Evaluation, Evaluation]:
    """The outputs of two sides from the same inputs; the second's are not computed where the first
    refuses."""
    shared = _Shared()
    ours, theirs = (
        Walk(over, side, given, compute=way)
        for side, way in ((first, shared.keep), (second, shared.look_up))
    )
    for mine, other in _anchors(ours.nodes, theirs.nodes):
        ours.until(mine)
        if ours.result.refusal:
            break
        theirs.until(other)
        shared.forget()
    else:
        ours.until()
        if not ours.result.refusal:
            theirs.until()
    return ours.result, theirs.result


def _anchors(ours: Sequence[Node], theirs: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
    """Products in each other's place, in order."""
    mine, others = (
        [n for n in nodes if n.operator.product or n.operator.attention] for nodes in (ours, theirs)
    )
    labels, places = ([(n.op, n.output.shape) for n in nodes] for nodes in (mine, others))
    matcher = SequenceMatcher(None, labels, places, autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        yield from zip(mine[a : a + size], others[b : b + size], strict=True)


@dataclass(frozen=True)
class _Result:
    """What a node computed. ``reads``: kept, so that nothing else takes their identity."""

    found: Sequence[Read]
    uninterpreted: str
    counts: tuple[int, int, float]
    reads: Sequence[Read]


class _Shared:
    """What the first graph has computed since both were at an anchor."""

    def __init__(self) -> None:
        self._results: dict[Hashable, _Result] = {}
        self._values: dict[tuple[int, ...], list[Exact]] = defaultdict(list)

    def keep(self, at: At) -> Sequence[Read]:
        """Computes a node of the first graph."""
        before = at.field.tally.counts
        found = compute(at)
        for value in found:
            if isinstance(value, Exact) and value.is_plain:
                self._values[value.shape].append(value)
        if (key := _key(at)) is not None:
            after = at.field.tally.counts
            counts = (after[0] - before[0], after[1] - before[1], after[2] - before[2])
            self._results[key] = _Result(found, at.uninterpreted, counts, at.inputs)
        return found

    def look_up(self, at: At) -> Sequence[Read]:
        """What a node of the second graph computes."""
        result = self._results.get(_key(at))
        if result is None:
            return [self._kept(value) for value in compute(at)]
        at.uninterpreted = result.uninterpreted
        at.field.tally.add(result.counts)
        return result.found

    def _kept(self, value: Read) -> Read:
        """The first graph's value that is the same, and of which no more is assumed."""
        if isinstance(value, Exact) and value.is_plain:
            for other in self._values.get(value.shape, ()):
                if other.growth.covers(value.growth) and equal(value, other):
                    return other
        return value

    def forget(self) -> None:
        self._results.clear()
        self._values.clear()


def _key(at: At) -> Hashable:
    """What the outputs depend on; None where that cannot be said."""
    signature = at.graph.signature(at.node)
    if signature is None:
        return None
    return at.node.op, signature, tuple(at.wanted), tuple(map(_identity, at.inputs))


def _identity(read: Read) -> Hashable:
    """Of a constant and of whole numbers what they hold, else the object."""
    if isinstance(read, Exact):
        return id(read) if read.source is None else _contents(read.source)
    return None if read is None else _contents(np.asarray(read))


def _contents(array: Array) -> Hashable:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return str(array.dtype), array.shape, hashlib.blake2b(data, digest_size=16).digest()
