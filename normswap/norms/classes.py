"""Regions of one structure, proven once.

The blocks of a model spell a norm in one way: the same operators, attributes, wiring and shapes,
with other weights. The proof of the first of them says which of its constants are weight and bias.
Of the others these constants are read off, and one evaluation has to confirm the formula, on rows
of every sort that the proof takes. Where it does not, or where anything else is unlike the first
one, the region is proven by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.norms.constants import known_constant
from normswap.norms.evaluation import OnProbes, RegionRunner, every_sort, probe_shapes
from normswap.norms.formula import Norm, spread
from normswap.norms.proof import Verdict, close, kind_of, prove, shortened
from normswap.norms.regions import Region
from normswap.norms.site import KINDS

_SMALL = 64  # bytes of a constant that is part of the structure whatever it holds


class Proofs:
    """The verdicts on the regions of one graph, which is not edited meanwhile.

    Attributes:
        met: the regions since ``forget``, None for one that is of no class.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._classes: dict[Hashable, _Class | None] = {}
        self._guesses: list[Met] = []
        self.met: list[Met | None] = []
        self._operations: dict[Node, int | None] = {}
        self._numbers: dict[Hashable, int] = {}
        self._constants: dict[Value, Constant | None] = {}

    def verdicts(self, region: Region, guess: bool) -> list[Verdict]:
        """What the exits of ``region`` are (see ``proof.prove``).

        ``guess``: of a region like one before, what is to be confirmed (``hold``).
        """
        described = self._described(region)
        if described is None:
            self.met.append(None)
            return [shortened(verdict) for verdict in prove(self._graph, region)]
        structure, leaves = described
        known = self._classes.get(structure)
        if guess and known is not None:
            arrays = _arrays(self._graph, leaves)
            norms = None if arrays is None else known.members(arrays)
            if arrays is not None and norms is not None:
                met = Met(region, known, leaves, arrays, norms)
                self.met.append(met)
                self._guesses.append(met)
                return [shortened(norm) for norm in norms]
        verdicts = prove(self._graph, region)
        made = self._classes[structure] = _class_of(self._graph, region, leaves, verdicts)
        self.met.append(None if made is None else Met(region, made, leaves, [], made.norms))
        return [shortened(verdict) for verdict in verdicts]

    def hold(self, entries: Collection[Value], centred: bool) -> bool:
        """Whether evaluations confirm what was guessed since ``forget``.

        ``entries``: of the norms that were found with it, ``centred`` whether these are: then it
        does not matter what a farther one that is not centred would have been.
        """
        return all(
            met.holds()
            for met in self._guesses
            if met.region.entry in entries
            or not centred
            or any(norm.statistics.centred for norm in met.norms)
        )

    def forget(self) -> bool:
        """Whether there were guesses since the last call. What was ``met`` is forgotten too."""
        found = bool(self._guesses)
        self._guesses.clear()
        self.met.clear()
        return found

    def met_again(self, met: Met, values: Mapping[Value, Value], before: Met | None) -> Met | None:
        """The same region elsewhere in the graph, where ``values`` stand for those of the first;
        None where its proof may take another way. ``before``: one whose constants are read."""
        leaves = [values[leaf] for leaf in met.leaves]
        same = before is not None and before.leaves == leaves
        arrays = before.arrays if before and same else _arrays(self._graph, leaves)
        norms = None if arrays is None else met.known.members(arrays)
        if arrays is None or norms is None:
            return None
        nodes = [values[node.output].producer for node in met.region.nodes]
        region = Region(
            values[met.region.entry],
            tuple(values[value] for value in met.region.exits),
            tuple(node for node in nodes if node is not None),
            (),
        )
        return Met(region, met.known, leaves, arrays, norms)

    def _described(self, region: Region) -> tuple[Hashable, list[Value]] | None:
        """The structure of a region, the same for all that differ in nothing but the numbers in
        large floating constants; and these constants. None where that cannot be said in short."""
        names: dict[Value | None, Hashable] = {None: None, region.entry: "entry"}
        for size in region.sizes:
            names[size] = len(names), _size_read(size)
        leaves: list[Value] = []
        lines: list[Hashable] = [(region.entry.shape, region.entry.dtype)]
        for node in region.nodes:
            operation = self.operation(node)
            if operation is None:
                return None
            read: list[Hashable] = []
            for value in node.inputs:
                if value not in names and value is not None:
                    constant = self.constant(value)
                    if constant is None:
                        return None
                    names[value] = len(names), constant
                    leaves += [value] if constant.is_leaf else []
                read.append(names[value])
            names.update((output, len(names) + i) for i, output in enumerate(node.outputs))
            lines.append((operation, tuple(read)))
        exits = tuple(names[value] for value in region.exits)
        return (tuple(lines), exits), leaves

    def operation(self, node: Node) -> int | None:
        """A number for what a node computes, and for the types of what it yields."""
        if node not in self._operations:
            signature = None if node.nested else self._graph.signature(node)
            types = tuple((output.shape, output.dtype) for output in node.outputs)
            key = node.op, signature, types
            number = (
                None if signature is None else self._numbers.setdefault(key, len(self._numbers))
            )
            self._operations[node] = number
        return self._operations[node]

    def constant(self, value: Value) -> Constant | None:
        """What stands for a constant in a structure; None for what is none, or a computed one."""
        if value not in self._constants:
            self._constants[value] = _constant_of(self._graph, value)
        return self._constants[value]


@dataclass(frozen=True)
class Met:
    """A region of a class: its constants that are its own, and what its exits are by these."""

    region: Region
    known: _Class
    leaves: list[Value]
    arrays: list[Array]
    norms: list[Norm]

    def holds(self) -> bool:
        """Whether an evaluation confirms it."""
        return self.known.confirms(self.arrays, self.norms)


@dataclass(frozen=True)
class Constant:
    """What stands for a constant in a structure: its type, and what it holds unless its numbers may
    be others (``is_leaf``)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: bytes | None

    @property
    def is_leaf(self) -> bool:
        return self.held is None


@dataclass(frozen=True)
class _Class:
    """Regions of one structure.

    ``exits``: of the first of them, as a function of the constants that the others have in place of
    its own, on ``probes``. ``norms``: what they are; ``weights`` and ``biases``: which of the
    constants theirs are, None where it is the same for all.
    """

    exits: OnProbes
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
            if not np.all(weight):
                return None
            if norm.over != norm.statistics.axes and _is_uniform(weight) and _is_uniform(bias):
                return None
            member = replace(norm, weight=weight, bias=bias)
            kind = kind_of(member, self.probes.ndim - 1)
            if kind not in KINDS:
                return None
            found.append(member if kind == norm.kind else replace(member, kind=kind))
        return found

    @cached_property
    def normalised(self) -> list[Array]:
        """The norms of the probes without weight and bias, which are the same for all members."""
        return [norm.statistics.normalised(self.probes, norm.epsilon) for norm in self.norms]

    def confirms(self, arrays: Sequence[Array], norms: Sequence[Norm]) -> bool:
        rank = self.probes.ndim - 1
        for norm, plain, y in zip(norms, self.normalised, self.exits(arrays), strict=True):
            if y is None or not np.all(np.isfinite(y)):
                return False
            weight, bias = (spread(a, norm.over, rank) for a in (norm.weight, norm.bias))
            if not close(plain * weight + bias, y, np.abs(weight) + np.abs(bias)):
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
        exits = None if probes is None else run.on(probes)
        if probes is None or exits is None:
            continue
        made = _Class(exits, norms, weights, biases, probes)
        if made.confirms(arrays, norms):
            return made
    return None


def _is_uniform(array: Array) -> bool:
    return bool(np.all(array == array.flat[0]))


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


def _size_read(value: Value) -> Hashable:
    node = value.producer
    return None if node is None else (node.data_input().shape, str(node.attributes))


def _constant_of(graph: Graph, value: Value) -> Constant | None:
    shape, dtype = value.shape, value.dtype
    if value.producer is not None or not value.is_constant or shape is None or dtype is None:
        return None
    if is_floating(dtype) and math.prod(shape) * dtype.itemsize > _SMALL:
        return Constant(shape, dtype, None)
    array = known_constant(graph, value)
    if array is None or array.nbytes > _SMALL:
        return None
    return Constant(shape, dtype, array.tobytes())
