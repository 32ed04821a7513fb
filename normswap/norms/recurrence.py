"""Anchors whose surroundings are those of one before, so that nothing is searched again.

The blocks of a model repeat. All that the search around an anchor looked at is kept (``Trail``).
Where the same is around another anchor, but for the numbers in large constants, the search would
go the same way, as long as what it meets are members of the classes that it met before.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.norms.classes import Met, Proofs
from normswap.norms.regions import Regions, is_barrier, reduces

_PATTERNS = 8  # of anchors of one kind, at most


class Recurrences:
    """The norms that were found in one graph, which is not edited meanwhile."""

    def __init__(self, graph: Graph, proofs: Proofs, regions: Regions) -> None:
        self._proofs, self._regions = proofs, regions
        self._outputs = frozenset(graph.outputs)
        self._keys: dict[Node, Hashable | None] = {}
        self._patterns: dict[Hashable, list[_Pattern]] = {}

    def keep(self, anchor: Node, end: Value) -> None:
        """Keeps what the last search, that of ``anchor``, looked at, and that ``end``, centred, is
        the first norm that it met which is; of one where anything else decides, nothing."""
        trail, met = self._regions.trail, self._proofs.met
        key, patterns = self._key(anchor), self._patterns.setdefault(self._key(anchor), [])
        if key is None or not trail.plain or None in met or len(patterns) == _PATTERNS:
            return
        known = [one for one in met if one is not None]
        centred = [norm.statistics.centred for one in known for norm in one.norms]
        if len(centred) != len(known) or any(centred[:-1]) or known[-1].region.exits != (end,):
            return
        if any(v.dtype == np.float16 for node in trail.nodes for v in node.outputs):
            return  # whether it overflows depends on its constants
        entry = known[-1].region.entry
        keys = {node: self._key(node) for node in trail.nodes}
        inside = {entry, *(value for node in keys for value in node.outputs)}
        reads = {v for node in keys for v in node.inputs if v is not None} - inside
        rim = {node: self._outside(node, inside) for node in trail.rim if node not in keys}
        constants = all(self._proofs.constant(value) is not None for value in reads)
        if constants and None not in keys.values() and None not in rim.values():
            patterns.append(_Pattern(anchor, entry, keys, rim, frozenset(trail.values), known))

    def find(self, anchor: Node) -> Met | None:
        """The norm around ``anchor``, to be confirmed. None where nothing like it was kept, or a
        proof on the way may end in another way."""
        for pattern in self._patterns.get(self._key(anchor), ()):
            values = self._matched(pattern, anchor)
            if values is None:
                continue
            met: list[Met] = []
            for one in pattern.met:  # those on the way have constants in common
                again = self._proofs.met_again(one, values, met[-1] if met else None)
                if again is None:
                    return None
                met.append(again)
            return met[-1]
        return None

    def _key(self, node: Node) -> Hashable | None:
        """Equal for nodes that a search treats alike; None where that cannot be said in short."""
        if node not in self._keys:
            operation = self._proofs.operation(node)
            given = tuple(value in self._outputs for value in node.outputs)
            key = operation, len(node.inputs), is_barrier(node), reduces(node), given
            self._keys[node] = None if operation is None else key
        return self._keys[node]

    def _outside(self, node: Node, inside: set[Value]) -> int | None:
        """Why a reader is no part of a region: -1 for one that never is, else which of its inputs
        comes from elsewhere."""
        if _ends(node):
            return -1
        of_data = self._regions.of_data
        reads = enumerate(node.inputs)
        return next((i for i, v in reads if v in of_data and v not in inside), None)

    def _matched(self, pattern: _Pattern, anchor: Node) -> dict[Value, Value] | None:
        """What stands around ``anchor`` for each value of a pattern; None where it is another."""
        values: dict[Value, Value] = {}
        taken: set[Value] = set()
        pending, rim = [(pattern.anchor, anchor)], list[tuple[Node, Node]]()
        nodes = {pattern.anchor: anchor}

        def pairs(node: Node, other: Node) -> bool:
            """Takes note that one stands for the other; whether nothing else does."""
            if node not in nodes:
                nodes[node] = other
                pending.append((node, other))
            return nodes[node] is other

        while pending:
            node, other = pending.pop()
            if self._key(other) != pattern.keys[node]:
                return None
            read = zip(node.inputs, other.inputs, strict=True)
            for value, found in (*read, *zip(node.outputs, other.outputs, strict=True)):
                if value is None or found is None or value in values:
                    if (None if value is None else values[value]) is not found:
                        return None
                    continue
                if found in taken or not self._alike(value, found, pattern):
                    return None
                values[value] = found
                taken.add(found)
                before, there = value.producer, found.producer
                if before in pattern.keys and not (before and there and pairs(before, there)):
                    return None
                if value not in pattern.values:
                    continue
                if len(value.uses) != len(found.uses):
                    return None
                for (reader, place), (twin, at) in zip(value.uses, found.uses, strict=True):
                    if place != at or (reader in pattern.keys and not pairs(reader, twin)):
                        return None
                    if reader in pattern.rim:
                        rim.append((reader, twin))
        for reader, twin in rim:
            input_at = pattern.rim[reader]
            if input_at is None or input_at < 0:
                apart = _ends(twin)
            else:
                read_there = twin.input(input_at)
                apart = read_there in self._regions.of_data and read_there not in taken
            if not apart:
                return None
        return values

    def _alike(self, value: Value, found: Value, pattern: _Pattern) -> bool:
        """Whether they may stand for each other, by themselves."""
        if value.producer in pattern.keys:
            return True
        if value is pattern.entry:
            alike = value.shape == found.shape and value.dtype == found.dtype
            return alike and not found.is_constant
        return self._proofs.constant(value) == self._proofs.constant(found)


@dataclass(frozen=True)
class _Pattern:
    """What a search looked at.

    Attributes:
        anchor, entry: where it began, and that of the norm.
        keys: of the nodes that may be part of a region.
        rim: of their readers that are none, why (see ``Recurrences._outside``).
        values: those whose readers were looked at.
        met: the regions on the way, the norm's last.
    """

    anchor: Node
    entry: Value
    keys: Mapping[Node, Hashable | None]
    rim: Mapping[Node, int | None]
    values: frozenset[Value]
    met: list[Met]


def _ends(node: Node) -> bool:
    """Whether no region goes on through a reader."""
    return is_barrier(node) or node.op == "Shape"
