"""What a row of the table of rules consists of, and the place that a map has reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.norms.site import Site
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal, called


@dataclass(frozen=True)
class Place:
    """An operator that a map has reached, and what is known there.

    ``known``: the values that have a map so far. ``downward``: maps are those that readers have to
    apply. ``inverts``: they have inverses. ``part``: a map that comes up to an operator which takes
    a part of its input concerns that part alone.
    """

    edits: WeightEdits
    node: Node
    known: Mapping[Value, ChannelMap]
    downward: bool = True
    inverts: bool = False
    part: bool = False

    @property
    def graph(self) -> Graph:
        return self.edits.graph

    def refusal(self) -> Refusal:
        """For an operator that takes no part in a change of what it reads or computes."""
        name = called(self.node)
        if any(v in self.known for v in self.node.outputs):
            return Refusal(f"{name} computes it")
        if self.downward:
            return Refusal(f"{name} reads it")
        value = next(v for v in self.node.dynamic_inputs() if v in self.known)
        return Refusal(f"'{value.name}' is read elsewhere too, by {name}")


Maps = Iterator[tuple[Value | int, ChannelMap]]
"""Maps of values at a place, or of constants, which are given by the number of the input. Maps of
values that have one already are to be compared with it."""


@dataclass(frozen=True)
class Unseen:
    """Maps that a norm does not see: those of the input of a site of which ``holds`` is true.

    norm(A x + t) = norm(x); or, where they ``commutes``, A norm(x) + t, which goes on behind it.
    """

    says: str
    holds: Callable[[ChannelMap, Site], bool]
    commutes: bool = False


@dataclass(frozen=True)
class Arithmetic:
    """y = a + b, a - b or -a by the ``signs`` of the operands that may be computed; or, with
    ``factor``, the multiple of an operand by what that gives of the other one, a constant."""

    signs: tuple[int, ...]
    factor: Callable[[Array], Array] | None = None


def refuse(place: Place) -> Maps:
    """For rows of operators that nothing goes through."""
    raise place.refusal()


@dataclass(frozen=True)
class Rule:
    """A row of the table: in words for the page, and as functions for ``spread.py``.

    ``both``: ways, in a change of variables. ``maps``: from the maps that are known at a place to
    those of its other values; raises Refusal. ``joins``: the map of the input of an operator that
    can join its writer at a place, else None. ``unseen``: what a norm does not see.
    ``arithmetic``: what the operator computes, where that is affine.
    """

    downward: str
    upward: str
    refuses: str
    both: str = "either way"
    maps: Callable[[Place], Maps] = refuse
    joins: Callable[[Place], tuple[Value, ChannelMap] | None] | None = None
    unseen: tuple[Unseen, ...] = ()
    arithmetic: Arithmetic | None = None
