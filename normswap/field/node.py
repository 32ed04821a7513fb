"""One node over the field: what it reads, how to run it alone, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from normswap.field.exact import Exact
from normswap.field.values import Field
from normswap.graph.graph import Array, Graph, Node, Runner, Value, is_floating

Read = Exact | Array | None


class Uncovered(Exception):
    """What cannot be computed over the field; the message says why."""


class At:
    """One node, with what it reads: ``inputs`` as the node has them, ``wanted`` the places of the
    outputs that somebody reads."""

    def __init__(
        self, field: Field, graph: Graph, node: Node, inputs: Sequence[Read], wanted: Sequence[int]
    ) -> None:
        self.field, self.graph, self.node = field, graph, node
        self.inputs, self.wanted = list(inputs), list(wanted)
        self.uninterpreted = ""

    @property
    def attributes(self) -> dict[str, Any]:
        return self.node.attributes

    @property
    def exact(self) -> list[Exact]:
        return [x for x in self.inputs if isinstance(x, Exact)]

    def __getitem__(self, index: int) -> Exact:
        """The input as a value over the field."""
        found = self.get(index)
        if found is None:
            raise Uncovered(f"{self.node.op} '{self.node.output.name}' lacks an input")
        return found

    def get(self, index: int) -> Exact | None:
        found = self.inputs[index] if index < len(self.inputs) else None
        return self.field.constant(found) if isinstance(found, np.ndarray) else found

    def runner(self) -> tuple[list[int], Runner]:
        """The node alone in float64: the places of the inputs that it is given, and how to run it
        on arrays for these; it gives the wanted outputs."""
        places: dict[Value, int] = {}
        for place, value in enumerate(self.node.inputs):
            if value is not None and self.inputs[place] is not None and _is_fed(value):
                places.setdefault(value, place)
        wanted = [self.node.outputs[i] for i in self.wanted]
        return list(places.values()), self.graph.slice(list(places), wanted, np.float64)

    def plain(self, arrays: dict[int, Array] | None = None) -> list[Array]:
        """The wanted outputs from shadows and whole numbers, with ``arrays`` in their places."""
        places, run = self.runner()
        reads = [self.inputs[place] for place in places]
        fed = [x.shadow if isinstance(x, Exact) else np.asarray(x) for x in reads]
        if arrays:
            fed = [arrays.get(place, array) for place, array in zip(places, fed, strict=True)]
        with np.errstate(all="ignore"):
            return [np.asarray(array) for array in run(fed)]

    def signature(self) -> str:
        """What tells functions of the same operator from each other."""
        found = self.graph.signature(self.node)
        if found is None:
            raise Uncovered(
                f"{self.node.op} '{self.node.output.name}' holds more than can be compared"
            )
        return f"{self.node.op} {found}"

    def name(self) -> str:
        """The operator alone where that is all there is, so that both kinds of graph agree."""
        bare = self.graph.is_bare(self.node) and not self.attributes
        return self.node.op if bare else self.signature()


def _is_fed(value: Value) -> bool:
    if value.is_constant:
        return value.dtype is not None and (is_floating(value.dtype) or value.dtype == bool)
    return True


Rule = Callable[[At], Sequence[Exact | None]]
RULES: dict[str, Rule] = {}
"""By the operator's name, for those that are no kind of the table of operators."""


_AnyRule = TypeVar("_AnyRule", bound=Rule)


def rule_for(name: str) -> Callable[[_AnyRule], _AnyRule]:
    """Makes a function the rule of an operator."""

    def register(rule: _AnyRule) -> _AnyRule:
        RULES[name] = rule
        return rule

    return register
