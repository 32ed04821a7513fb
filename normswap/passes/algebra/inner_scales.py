"""A scale of what a norm reads or gives, inside a norm that is spelled out.

If x becomes 2^a x, every value inside becomes 2^e times itself: a square 2^2a times, its root 2^a
times again, what is divided by it stays. What is added to a scaled value, the epsilon, has to be
scaled alike. A power of two rounds nothing, so what the norm gives is the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normswap.graph.graph import Graph, Node, Value
from normswap.norms.site import Site
from normswap.passes.algebra.spread import nodes_of
from normswap.passes.base import Refusal, called

POWER = "Pow"
Constant = tuple[Node, int]
"""A constant by the node that reads it and the number of that input."""


@dataclass(frozen=True)
class InnerScales:
    """The binary exponents by which the ``values`` inside a norm change, and the ``constants`` that
    have to change with them."""

    values: Mapping[Value, int]
    constants: Mapping[Constant, int]


def inner_scales(graph: Graph, site: Site, reads: int, writes: int) -> InnerScales:
    """What follows inside a site if its input becomes 2^reads times itself and its output 2^writes.

    Raises Refusal where that cannot be had by changing constants: it is not spelled in operators of
    which each scales its result by a power of the scale, or has nothing that could take ``writes``.
    """
    found = {graph.value(site.input): float(reads)}
    constants: dict[Constant, int] = {}
    own = nodes_of(graph, site)
    for node in own:
        exponent = _exponent(graph, node, found, constants)
        found |= dict.fromkeys(node.outputs, exponent)
    y = graph.value(site.output)
    if found[y] != 0:
        raise Refusal(f"'{site.name}' does not divide by all of the scale")
    values = {value: _whole(exponent, site) for value, exponent in found.items()}
    if writes:
        _scale_output(y, set(own), writes, constants)
    return InnerScales(values, {c: e for c, e in constants.items() if e})


def difference_of_squares(graph: Graph, site: Site) -> Value | None:
    """What a spelled-out norm has as the difference of two squares of its input, E[x^2] - E[x]^2;
    None if there is none. It keeps few of the digits that the squares are rounded to."""
    known = {graph.value(site.input): 1.0}
    for node in nodes_of(graph, site):
        data, arithmetic = node.dynamic_inputs(), node.operator.arithmetic
        if arithmetic == "sum" and len(data) == 2 and all(known.get(v) == 2 for v in data):
            minus = [v for v in data if v.producer and v.producer.operator.arithmetic == "sign"]
            if minus or not node.operator.commutes:
                return node.output
        with contextlib.suppress(Refusal):
            known |= dict.fromkeys(node.outputs, _exponent(graph, node, known, {}))
    return None


def _exponent(
    graph: Graph, node: Node, known: Mapping[Value, float], constants: dict[Constant, int]
) -> float:
    """That of the result of a node; notes the constants that it adds."""
    operator, data = node.operator, node.dynamic_inputs()
    exponents = [known.get(value, 0.0) for value in data]
    if operator.arithmetic == "sum":
        if len(set(exponents)) > 1:
            raise _unlike(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_constant and exponents[0]:
                constants[node, index] = _whole_at(exponents[0], node)
        return exponents[0]
    if operator.arithmetic == "product":
        signs = (1, 1) if operator.commutes else (1, -1)
        operands = [v for v in node.inputs if v is not None]
        return sum(s * known.get(v, 0.0) for s, v in zip(signs, operands, strict=True))
    if not any(exponents):
        return 0.0
    if node.op == POWER:
        power = graph.scalar(node.input(1))
        if power is None or len(data) != 1:
            raise _unlike(node)
        return exponents[0] * power
    if operator.homogeneity is None or any(exponents[1:]):
        raise _unlike(node)
    return exponents[0] * operator.homogeneity


def _scale_output(y: Value, own: set[Node], writes: int, constants: dict[Constant, int]) -> None:
    """Lets beta and gamma, the last constants that are added and multiplied, take a scale."""
    value = y
    while (node := value.producer) is not None and node in own:
        data, fixed = node.dynamic_inputs(), _constants_of(node)
        if node.operator.arithmetic == "product" and len(fixed) == len(data) == 1:
            divides = not node.operator.commutes and fixed[0] == 1
            _add(constants, (node, fixed[0]), -writes if divides else writes)
            return
        if node.operator.arithmetic == "sum" and len(fixed) == len(data) == 1:
            _add(constants, (node, fixed[0]), writes)
        elif not node.operator.passes_through:
            break
        value = data[0]
    raise Refusal(f"'{y.name}' has no weight that could take the scale")


def _constants_of(node: Node) -> Sequence[int]:
    return [i for i, v in enumerate(node.inputs) if v is not None and v.is_constant]


def _add(constants: dict[Constant, int], at: Constant, exponent: int) -> None:
    constants[at] = constants.get(at, 0) + exponent


def _whole(exponent: float, site: Site) -> int:
    if exponent != int(exponent):
        raise Refusal(f"'{site.name}' takes a root of what has no whole one")
    return int(exponent)


def _whole_at(exponent: float, node: Node) -> int:
    if exponent != int(exponent):
        raise _unlike(node)
    return int(exponent)


def _unlike(node: Node) -> Refusal:
    return Refusal(f"{called(node)} does not scale with what it reads")
