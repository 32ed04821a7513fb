"""Where two graphs that are not equal begin to differ over the field, and which numbers they hold
there that may be why."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from normswap.field.evaluation import Side, evaluate
from normswap.field.exact import Exact
from normswap.field.node import Read
from normswap.field.values import Field
from normswap.graph.graph import Array, Value, is_floating

_CLOSE = 1e-3  # relative; numbers that are meant to be the same
_ROUNDED = 1e-6  # relative; a fraction in single precision
_LARGEST = 1 << 16  # the count of a mean, and the size of arrays that are compared with all
_REPORTED = 3


@dataclass(frozen=True)
class Pair:
    """A value of the reference and the one in its place in the candidate; ``at`` names it."""

    at: str
    ours: Value
    theirs: Value


def first_difference(
    over: Field, sides: tuple[Side, Side], given: Sequence[Read], pairs: Sequence[Pair], output: int
) -> str:
    """From where on the output at this place differs, and why, in words; '' if nothing is found.

    A pass may change values on purpose, and right again behind them. So it is the first pair that
    differs and has no pair behind it that is equal.
    """
    ours, theirs = sides
    first = _digests(over, ours, given, [pair.ours for pair in pairs])
    second = _digests(over, theirs, given, [pair.theirs for pair in pairs])
    order = {v: i for i, n in enumerate(ours.graph.nodes) for v in n.outputs}
    ends = [ours.outputs[output]]
    needed = {v for node in ours.graph.ancestors(ends) for v in node.outputs}
    known = [p for p in pairs if p.ours in needed and p.ours in first and p.theirs in second]
    known.sort(key=lambda pair: order.get(pair.ours, -1))
    equal = [pair for pair in known if first[pair.ours] == second[pair.theirs]]
    same = {pair.ours for pair in equal}
    found = (p for p in known if p.ours not in same)
    begin = next((p for p in found if not same & ours.graph.descendants([p.ours])), None)
    place = "" if begin is None else f", from {begin.at} on"
    stops = [[pair.ours for pair in equal], [pair.theirs for pair in equal]]
    reasons: list[str] = []
    outputs = [side.outputs[output] for side in sides]
    for towards in ([[begin.ours, begin.theirs]] if begin else []) + [outputs]:
        if not reasons:
            numbers = [_numbers(*of) for of in zip(sides, towards, stops, strict=True)]
            reasons = list(itertools.islice(_unlike(*numbers), _REPORTED))
    return place + "".join(f"; {reason}" for reason in reasons)


def _digests(
    over: Field, side: Side, given: Sequence[Read], values: Sequence[Value]
) -> dict[Value, bytes]:
    """What tells the values that are not equal apart."""
    wanted, found = set(values), dict[Value, bytes]()

    def watch(value: Value, exact: Exact) -> None:
        if value in wanted:
            digest = hashlib.blake2b(repr(exact.shape).encode())
            for j in range(exact.count):
                digest.update(np.ascontiguousarray(exact.residue(j)).data)
            found[value] = digest.digest()

    evaluate(over, side, given, watch)
    return found


@dataclass(frozen=True)
class _Number:
    """A constant, or an attribute, with its name and the sizes of the arrays around it."""

    name: str
    array: Array
    sizes: frozenset[int]

    def counts(self, count: int) -> bool:
        """Whether so many elements may be counted by it."""
        return count > 0 and any(size % count == 0 for size in self.sizes)

    @functools.cached_property
    def digest(self) -> bytes:
        """Equal for equal numbers."""
        return hashlib.blake2b(np.ascontiguousarray(self.array, np.float64).data).digest()

    @property
    def single(self) -> float | None:
        """The number, where it is one, or one that is repeated."""
        first = self.array.reshape(-1)[:1]
        return float(first[0]) if first.size and (self.array == first).all() else None


def _numbers(side: Side, end: Value, stop: Sequence[Value]) -> list[_Number]:
    """The constants, and the numbers in attributes, that ``end`` is computed with."""
    graph, found = side.graph, dict[str, _Number]()
    nodes = graph.ancestors([end], [value for value in stop if value is not end])
    met = {v.shape for node in nodes for v in [*node.inputs, *node.outputs] if v and v.shape}
    sizes = frozenset(map(math.prod, met))
    for node in nodes:
        for value in node.inputs:
            if value is None or not value.is_constant or value in (side.constants or {}):
                continue
            if value.producer is None and value.dtype is not None and is_floating(value.dtype):
                found[value.name] = _Number(value.name, graph.plain_constant(value), sizes)
        for name, number in node.attributes.items():
            if isinstance(number, float):
                array, called = np.asarray(graph.as_attribute(number)), f"{node.output.name}.{name}"
                found[called] = _Number(called, array, sizes)
    return list(found.values())


def _unlike(ours: Sequence[_Number], theirs: Sequence[_Number]) -> Iterator[str]:
    """Numbers that only one side has, which are almost those of the other one, their roots, or the
    fraction 1/n of a mean."""
    known = [{number.digest for number in side} for side in (ours, theirs)]
    left = [number for number in ours if number.digest not in known[1]]
    right = [number for number in theirs if number.digest not in known[0]]
    for one in left:
        for other in [n for n in right if n.name == one.name] or right:
            yield from _apart(one, other)
            yield from _root(one, other)
            yield from _root(other, one)
    for one in [*left, *right]:
        yield from _fraction(one)


def _apart(one: _Number, other: _Number) -> Iterator[str]:
    """Of the same name, or meant to be the same: how far apart, and at how many places."""
    same, size = one.name == other.name, one.array.size
    if size != other.array.size or not 0 < size <= (size if same else _LARGEST):
        return
    a, b = (np.asarray(n.array, np.float64).reshape(-1) for n in (one, other))
    with np.errstate(all="ignore"):
        gaps = np.abs(a - b)
        close = gaps.max() <= _CLOSE * np.abs(a).max()
    if same or close:
        at = f" at {np.count_nonzero(gaps)} of {size} places" if size > 1 else ""
        whose = "" if same else f" from '{other.name}'"
        yield f"'{one.name}' differs{whose} by {gaps.max():.1e}{at}"


def _root(one: _Number, other: _Number) -> Iterator[str]:
    """A root that had to be rounded: of an epsilon, or of so many."""
    x, square = one.single, other.single
    if x is None or square is None or not (0 < x < np.inf and 0 < square < np.inf):
        return
    count = round(x * x / square)
    if count == 1 or one.counts(count):
        gap = float(Fraction(x) ** 2 - count * Fraction(square))
        if 0 < abs(gap) <= _ROUNDED * x * x:
            times = f"{count} times " if count > 1 else ""
            yield f"the square of '{one.name}' is {times}'{other.name}' but for {gap:.1e}"


def _fraction(one: _Number) -> Iterator[str]:
    """1/n, the weight of one element in a mean."""
    x = one.single
    if x is None or not 1 / _LARGEST <= abs(x) < 1:
        return
    count = round(1 / abs(x))
    gap = float(abs(Fraction(x)) - Fraction(1, count))
    if one.counts(count) and 0 < abs(gap) <= _ROUNDED * abs(x):
        yield f"'{one.name}' is 1/{count} but for {gap:.1e}"
