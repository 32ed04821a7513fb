"""Regions of one structure, proven once.

The blocks of a model spell a norm in one way: the same operators, attributes, wiring and shapes,
with other weights. The proof of the first of them says which of its constants are weight and bias.
Of the others these constants are read off, and one evaluation has to confirm the formula, on rows
of every sort that the proof takes. Where it does not, or where anything else is unlike the first
one, the region is proven by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normswap.graph.graph import Array, Graph, Value, is_floating
from normswap.norms.constants import known_constant
from normswap.norms.evaluation import RegionRunner, every_sort, probe_shapes
from normswap.norms.formula import Norm, spread
from normswap.norms.proof import Verdict, close, kind_of, prove, shortened
from normswap.norms.regions import Region
from normswap.norms.site import KINDS

_SMALL = 64  # bytes of a constant that is part of the structure whatever it holds


class Proofs:
    """The verdicts on the regions of one graph, which is not edited meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._classes: dict[Hashable, _Class | None] = {}
        self._guesses: list[tuple[Region, _Class, list[Array], list[Norm]]] = []

    def verdicts(self, region: Region, guess: bool) -> list[Verdict]:
        """What the exits of ``region`` are (see ``proof.prove``).

        ``guess``: of a region like one before, what is to be confirmed (``hold``).
        """
        described = _described(self._graph, region)
        if described is None:
            return [shortened(verdict) for verdict in prove(self._graph, region)]
        structure, leaves = described
        known = self._classes.get(structure)
        if guess and known is not None:
            arrays = _arrays(self._graph, leaves)
            norms = None if arrays is None else known.members(arrays)
            if arrays is not None and norms is not None:
                self._guesses.append((region, known, arrays, norms))
                return [shortened(norm) for norm in norms]
        verdicts = prove(self._graph, region)
        self._classes[structure] = _class_of(self._graph, region, leaves, verdicts)
        return [shortened(verdict) for verdict in verdicts]

    def hold(self, entries: Collection[Value], centred: bool) -> bool:
        """Whether evaluations confirm what was guessed since ``forget``.

        ``entries``: of the norms that were found with it, ``centred`` whether these are: then it
        does not matter what a farther one that is not centred would have been.
        """
        return all(
            known.confirms(arrays, norms)
            for region, known, arrays, norms in self._guesses
            if region.entry in entries
            or not centred
            or any(norm.statistics.centred for norm in norms)
        )

    def forget(self) -> bool:
        """Whether there were guesses since the last call."""
        found = bool(self._guesses)
        self._guesses.clear()
        return found


@dataclass(frozen=True)
class _Class:
    """Regions of one structure.

    ``run``: the first of them, as a function of its entry and of the constants that the others have
    in place of its own. ``norms``: what its exits are; ``weights`` and ``biases``: which of the
    constants theirs are, None where it is the same for all. ``probes``: to confirm others.
    """

    run: RegionRunner
    norms: list[Norm]
    weights: list[int | None]
    biases: list[int | None]
    probes: Array

    def members(self, arrays: Sequence[Array]) -> list[Norm] | None:
        """What the exits of a region with these constants are, to be confirmed; None where its
        proof may take another way than that of the first."""
        found = []
        rows = zip(self.norms, self.weights, self.biases, strict=True)
        for norm, *places in rows:
            weight, bias = (
                own if place is None else arrays[place].astype(np.float64).reshape(own.shape)
                for own, place in zip((norm.weight, norm.bias), places, strict=True)
            )
            member = replace(norm, weight=weight, bias=bias)
            uniform = bool(np.all(weight == weight.flat[0]) and np.all(bias == bias.flat[0]))
            if not np.all(weight) or (uniform and norm.over != norm.statistics.axes):
                return None
            kind = kind_of(member, self.probes.ndim - 1)
            if kind not in KINDS:
                return None
            found.append(replace(member, kind=kind))
        return found

    def confirms(self, arrays: Sequence[Array], norms: Sequence[Norm]) -> bool:
        rank = self.probes.ndim - 1
        for norm, y in zip(norms, self.run(self.probes, arrays), strict=True):
            if y is None or not np.all(np.isfinite(y)):
                return False
            slack = sum(np.abs(spread(a, norm.over, rank)) for a in (norm.weight, norm.bias))
            if not close(norm(self.probes), y, np.asarray(slack)):
                return False
        return True


def _class_of(
    graph: Graph, region: Region, leaves: Sequence[Value], verdicts: Sequence[Verdict]
) -> _Class | None:
    """The class of a region with these verdicts; None where others have to be proven as well: not
    all exits are norms, more than a few rows had to be looked at, or the proof needed other numbers
    in place of its constants."""
    norms = [verdict for verdict in verdicts if isinstance(verdict, Norm)]
    arrays = _arrays(graph, leaves)
    if len(norms) < len(verdicts) or not norms or arrays is None:
        return None
    run = RegionRunner(graph, region, dict(zip(leaves, arrays, strict=True)))
    if not run.is_known or not run.is_rowwise:
        return None
    weights = [_place(norm.weight, arrays) for norm in norms]
    biases = [_place(norm.bias, arrays) for norm in norms]
    taken = {axis for norm in norms for axis in (*norm.statistics.axes, *norm.over)}
    entry = region.entry.shape or ()
    for shape in probe_shapes(region):
        if any(shape[axis] != entry[axis] for axis in taken):
            continue
        probes = every_sort(shape, norms[0])
        made = None if probes is None else _Class(run, norms, weights, biases, probes)
        if made is not None and made.confirms(arrays, norms):
            return made
    return None


def _place(constants: Array, arrays: Sequence[Array]) -> int | None:
    """Which of the arrays holds ``constants``."""
    return next(
        (
            place
            for place, array in enumerate(arrays)
            if array.size == constants.size
            and np.array_equal(array.astype(np.float64).reshape(-1), constants.reshape(-1))
        ),
        None,
    )


def _arrays(graph: Graph, leaves: Sequence[Value]) -> list[Array] | None:
    arrays = [array for leaf in leaves if (array := known_constant(graph, leaf)) is not None]
    return arrays if len(arrays) == len(leaves) else None


def _described(graph: Graph, region: Region) -> tuple[Hashable, list[Value]] | None:
    """The structure of a region, the same for all that differ in nothing but the numbers in large
    floating constants; and these constants. None where that cannot be said in short."""
    names: dict[Value | None, Hashable] = {None: None, region.entry: "entry"}
    for size in region.sizes:
        names[size] = len(names), _size_read(size)
    leaves: list[Value] = []
    lines: list[Hashable] = [(region.entry.shape, region.entry.dtype)]
    for node in region.nodes:
        signature = graph.signature(node)
        if signature is None or node.nested:
            return None
        read: list[Hashable] = []
        for value in node.inputs:
            if value not in names and value is not None:
                if value.producer is not None or not value.is_constant:
                    return None
                named = _named_constant(graph, value, len(names))
                if named is None:
                    return None
                names[value], is_leaf = named
                leaves += [value] if is_leaf else []
            read.append(names[value])
        names.update((output, len(names) + i) for i, output in enumerate(node.outputs))
        types = tuple((output.shape, output.dtype) for output in node.outputs)
        lines.append((node.op, signature, tuple(read), types))
    exits = tuple(names[value] for value in region.exits)
    return (tuple(lines), exits), leaves


def _size_read(value: Value) -> Hashable:
    node = value.producer
    return None if node is None else (node.data_input().shape, str(node.attributes))


def _named_constant(graph: Graph, value: Value, number: int) -> tuple[Hashable, bool] | None:
    """What stands for a constant in a structure, and whether its numbers may be others."""
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None:
        return None
    if is_floating(dtype) and math.prod(shape) * dtype.itemsize > _SMALL:
        return (number, shape, dtype), True
    array = known_constant(graph, value)
    if array is None or array.nbytes > _SMALL:
        return None
    return (number, shape, dtype, array.tobytes()), False
