"""Norms spelled out in elementary operators, or lowered to another norm's operator.

``regions.py`` says where to look and what belongs together, ``proof.py`` decides; here the largest
proven part of a region becomes a site.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from normswap.graph.graph import Array, Graph, Node, Value
from normswap.norms.classes import Proofs
from normswap.norms.evaluation import RegionRunner, probe_shapes
from normswap.norms.formula import Norm
from normswap.norms.proof import Verdict, likeliest, shortened
from normswap.norms.recurrence import Recurrences
from normswap.norms.regions import (
    Region,
    Regions,
    behind_control_flow,
    is_lowering,
    is_root,
    obstacle,
    over_statistic,
)
from normswap.norms.site import Rejection, Site, site_name

_CENTRED_WRONGLY = (
    "what it divides is centred, but not by its own mean over the axes that it normalises"
)
_SAME = 1e-9
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass
class Decomposed:
    """The norms of a graph that are made of several operators.

    Attributes:
        sites: the norms, each proven.
        covered: the nodes that they are made of.
        rejected: the candidates that are no norms, with the reason.
    """

    sites: list[Site] = field(default_factory=list)
    covered: set[Node] = field(default_factory=set)
    rejected: list[Rejection] = field(default_factory=list)


def decomposed_norms(graph: Graph) -> Decomposed:
    """Finds the norms of ``graph`` that are made of several operators, each by a numeric proof."""
    result, finder = Decomposed(), _Finder(graph)
    looked_at: set[Node] = set()
    for anchor in graph.nodes:
        lowered = is_lowering(graph, anchor)
        if anchor in looked_at or not (
            lowered or (is_root(graph, anchor) and over_statistic(anchor))
        ):
            continue
        parts = finder.parts(anchor, lowered)
        if isinstance(parts, _Rejected):
            looked_at |= parts.nodes
            if not lowered:
                where = anchor.scope or anchor.output.name
                result.rejected.append(Rejection(where, parts.reason))
            continue
        for part in parts:
            result.sites.append(_site(graph, part))
            result.covered |= set(part.nodes)
            looked_at |= set(part.nodes)
    return result


@dataclass
class _Part:
    """A proven norm of a region: from its entry to ``exit`` through ``nodes``."""

    region: Region
    exit: Value
    nodes: list[Node]
    norm: Norm

    @property
    def entry(self) -> Value:
        return self.region.entry


@dataclass
class _Rejected:
    """The reason, and what was looked at."""

    reason: str
    nodes: set[Node]


class _Finder:
    """Finds the norms of one graph, which is not edited meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._proofs, self._regions = graph, Proofs(graph), Regions(graph)
        self._recurrences = Recurrences(graph, self._proofs, self._regions)

    def parts(self, anchor: Node, lowered: bool) -> list[_Part] | _Rejected:
        """The norms around ``anchor``; two that share their statistics are two.

        What regions like those before would be is guessed at first. Only where that holds of the
        norms that are found it was of use.
        """
        self._proofs.forget()
        found = None if lowered else self._recurring(anchor)
        if found is not None:
            return found
        found = self._search(anchor, lowered, guess=True)
        if not isinstance(found, _Rejected):
            centred = all(part.norm.statistics.centred for part in found)
            held = self._proofs.hold({part.entry for part in found}, centred)
            if held:
                if len(found) == 1 and centred and not lowered and _is_all(found[0]):
                    self._recurrences.keep(anchor, found[0].exit)
                return found
        elif not self._proofs.forget():
            return found
        return self._search(anchor, lowered, guess=False)

    def _recurring(self, anchor: Node) -> list[_Part] | _Rejected | None:
        """The same where the surroundings are those of an anchor before; None where not."""
        again = self._recurrences.find(anchor)
        if again is None:
            return None
        (norm,), (end,) = (shortened(norm) for norm in again.norms), again.region.exits
        assert isinstance(norm, Norm)
        nodes = self._graph.ancestors([end], stop=[again.region.entry])
        part = _Part(again.region, end, nodes, norm)
        if not _is_all(part):
            return None
        return [part] if again.holds() else self._search(anchor, lowered=False, guess=False)

    def _search(self, anchor: Node, lowered: bool, guess: bool) -> list[_Part] | _Rejected:
        reasons: list[str] = []
        best: list[_Part] | None = None
        seen: set[Node] = {anchor}
        rows: list[Value] = []  # what was reshaped into the rows that ``best`` normalises
        whole: list[Value] = []  # what the input of ``best`` is, less its mean
        for region in self._regions.around(anchor):
            if (rows or whole) and region.entry not in [*rows, *whole]:
                continue
            verdicts = self._verdicts(region, guess)
            proven = {e: v for e, v in verdicts.items() if isinstance(v, Norm)}
            if not proven:
                reasons += [str(verdict) for verdict in verdicts.values()]
                seen |= set(region.nodes)
                continue
            found = _largest(self._graph, region, proven)
            if region.entry in whole:
                if all(part.norm.statistics.centred for part in found):
                    best = found
                whole.remove(region.entry)
                if not rows and not whole:
                    break
                continue
            if rows:
                if all(_is_of_channels(part) for part in found):
                    best = found
                continue
            centred = any(n.statistics.centred for n in proven.values())
            if best is None or centred:
                best = found
            if centred and not lowered:
                rows, whole = _before_rows(best), _before_centring(best)
                if not rows and not whole:
                    break  # farther entries only add what is no part of a norm
            if lowered and any(_is_more(anchor, part) for part in best):
                whole = _before_centring(best)
                if not whole:
                    break
        if best is None:
            return _Rejected(likeliest(reasons) if reasons else obstacle(anchor), seen)
        if lowered:
            best = [part for part in best if _is_more(anchor, part)]
            return best or _Rejected("", set())
        nodes = {n for part in best for n in part.nodes}
        for part in best:
            reason = _why_centred_wrongly(part)
            if not reason and (over := _overflowing_in_half(self._graph, part.region, part.exit)):
                reason = f"it overflows in half precision on ordinary values (at {over})"
            if reason:
                return _Rejected(reason, nodes)
        return best

    def _verdicts(self, region: Region, guess: bool) -> dict[Value, Verdict]:
        """What the exits of a region are; the last one alone if it is a norm and they are in a row,
        for then the norm is no smaller."""
        last = _last_in_row(self._graph, region)
        if last is not None:
            (verdict,) = self._proofs.verdicts(replace(region, exits=(last,)), guess)
            if isinstance(verdict, Norm):
                return {last: verdict}
        return dict(zip(region.exits, self._proofs.verdicts(region, guess), strict=True))


def _is_all(part: _Part) -> bool:
    """Whether a centred norm ends the search: nothing farther may be the same norm of more."""
    return not _before_rows([part]) and not _before_centring([part])


def _before_rows(parts: Sequence[_Part]) -> list[Value]:
    """The values that a Reshape made the entry of centred norms of, if one did."""
    if not all(part.norm.statistics.centred for part in parts):
        return []
    value, found, reshaped = parts[0].entry, list[Value](), False
    while (node := value.producer) is not None and node.operator.passes_through:
        reshaped |= node.operator.move == "reshape"
        value = node.data_input()
        found += [value] if reshaped else []
    return found


def _before_centring(parts: Sequence[_Part]) -> list[Value]:
    """The values whose own mean was subtracted to make the entry of norms that are centred anyway,
    as where it is done twice for the sake of rounding."""
    value, found = parts[0].entry, list[Value]()
    while (node := value.producer) is not None and node.op == "Sub":
        minuend, mean = (node.data_input(i) for i in range(2))
        ends = mean.is_constant or minuend.shape != value.shape or mean.shape == value.shape
        if ends or minuend.is_constant:
            break
        found.append(minuend)
        value = minuend
    return found


def _is_of_channels(part: _Part) -> bool:
    """Whether it is a norm of groups of channels of what was reshaped into rows, not of the rows.

    Of a value of two axes either may be meant: then a weight or bias per channel tells.
    """
    plain = part.norm.is_plain_weight and part.norm.is_plain_bias
    channels = part.norm.kind in ("group_norm", "instance_norm")
    return channels and (len(part.entry.shape or ()) > 2 or not plain)


def _last_in_row(graph: Graph, region: Region) -> Value | None:
    """The last of several exits that does more than to move the one before it, if each of them is
    read by the node behind the next one alone."""
    for value, behind in itertools.pairwise(region.exits):
        if value in graph.outputs or value.readers != [behind.producer]:
            return None
    exits = list(region.exits)
    while len(exits) > 1 and _is_move(exits[-1]):
        exits.pop()
    return exits[-1] if len(region.exits) > 1 else None


def _is_move(value: Value) -> bool:
    operator = value.producer.operator if value.producer is not None else None
    return operator is not None and (operator.passes_through or operator.move == "pad")


def _largest(graph: Graph, region: Region, proven: dict[Value, Norm]) -> list[_Part]:
    """The parts of a region that end as far downstream as they can.

    From each norm without a proven value before it, on to the next while nothing else reads it or
    while weight or bias are still missing.
    """
    ends: dict[Value, None] = {}
    pending = [v for v in proven if not _behind_another(graph, region, v, proven)]
    while pending:
        value = pending.pop()
        onward = [
            w for w in _next(region, value, proven) if _continues(graph, region, value, w, proven)
        ]
        pending.extend(onward)
        if not onward:
            ends[value] = None
    parts = []
    for end in ends:
        end = _without_moves(end, proven)
        nodes = graph.ancestors([end], stop=[region.entry])
        parts.append(_Part(region, end, nodes, proven[end]))
    return parts


def _behind_another(graph: Graph, region: Region, value: Value, proven: Iterable[Value]) -> bool:
    nodes = graph.ancestors([value], stop=[region.entry])
    return any(out in proven and out is not value for n in nodes for out in n.outputs)


def _next(region: Region, value: Value, proven: dict[Value, Norm]) -> list[Value]:
    """The nearest proven values behind ``value``."""
    inside = set(region.nodes)
    nearest: dict[Value, None] = {}
    pending, seen = [n for n in value.readers if n in inside], set[Node]()
    while pending:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node.output in proven:
            nearest[node.output] = None
        else:
            pending.extend(n for v in node.outputs for n in v.readers if n in inside)
    return list(nearest)


def _continues(
    graph: Graph, region: Region, value: Value, onward: Value, proven: dict[Value, Norm]
) -> bool:
    """Whether ``onward`` belongs to the norm that ends in ``value`` otherwise."""
    if len(value.readers) == 1 and value not in graph.outputs:
        return True
    return any(_adds(proven[value], proven[v]) for v in (onward, *_next(region, onward, proven)))


def _adds(before: Norm, behind: Norm) -> bool:
    """Whether weight or bias are still missing before and are there behind."""
    first = before.weight.flat[0]
    uniform = bool(np.all(np.abs(before.weight - first) <= _SAME * abs(first)))
    adds_weight = uniform and not bool(np.all(behind.weight == first))
    return adds_weight or (before.is_plain_bias and not behind.is_plain_bias)


def _without_moves(end: Value, proven: dict[Value, Norm]) -> Value:
    """The end without what only copies it, in steps perhaps: a single window, padded by nothing."""
    value = end
    while value.producer is not None and _is_move(value):
        value = value.producer.data_input()
        if value in proven:
            end = value
    return end


def _is_more(anchor: Node, part: _Part) -> bool:
    """Whether the region around a norm operator is another norm than the operator by itself."""
    if part.exit is anchor.output:
        reshaped = any(node.op == "Reshape" for node in part.nodes)  # rows, if only of a batch of 1
        return reshaped and part.norm.kind == "layer_norm"
    own = anchor.operator.norm
    if own == part.norm.kind:
        return part.entry is anchor.data_input()  # it gains a weight or a bias
    if own == "layer_norm" and part.norm.kind != "rms_norm":
        return _is_of_channels(part)
    if own != "instance_norm" or part.norm.kind != "layer_norm":
        return True
    axes, rank = part.norm.statistics.axes, len(part.entry.shape or ())
    return axes == tuple(range(rank - len(axes), rank)) or not part.norm.is_plain_weight


def _why_centred_wrongly(part: _Part) -> str:
    """Of an RMSNorm of x - m where m is a statistic: a LayerNorm gone wrong, not an RMSNorm."""
    node = part.entry.producer
    if part.norm.statistics.centred or node is None or node.op != "Sub":
        return ""
    operands = [v for v in node.inputs if v is not None and not v.is_constant]
    if len(operands) != 2 or operands[0].shape == operands[1].shape:
        return ""
    return obstacle(node) if behind_control_flow(node) else _CENTRED_WRONGLY


def _site(graph: Graph, part: _Part) -> Site:
    norm, entry = part.norm, _of_the_same_type(part)
    working = [n for n in part.nodes if n.dynamic_inputs()]
    constants = [v for n in working for v in n.inputs if v is not None and v.is_constant]
    shape = entry.shape or ()
    over_channels = norm.over != norm.statistics.axes
    return Site(
        name=site_name(working, constants),
        kind=norm.kind,
        axes=norm.statistics.axes,
        normalized_shape=tuple(shape[axis] for axis in norm.statistics.axes),
        epsilon=norm.epsilon,
        weight=None if norm.is_plain_weight else _per_channel(norm, norm.weight, over_channels),
        bias=None if norm.is_plain_bias else _per_channel(norm, norm.bias, over_channels),
        groups=norm.statistics.groups or (1 if norm.kind == "group_norm" else None),
        input=entry.name,
        output=part.exit.name,
        spelling="decomposed",
    )


def _per_channel(norm: Norm, constants: Array, over_channels: bool) -> Array:
    """A GroupNorm's weight goes with its channels, axis 1, even if proven for every position."""
    if norm.kind == "group_norm" and not over_channels:
        return np.ascontiguousarray(constants.reshape(constants.shape[0], -1)[:, 0])
    return constants


def _of_the_same_type(part: _Part) -> Value:
    """The entry before the Cast that the norm undoes at its end."""
    entry = part.entry
    while entry.dtype != part.exit.dtype and entry.producer and entry.producer.op == "Cast":
        entry = entry.producer.data_input()
    return entry if entry.dtype == part.exit.dtype else part.entry


def _overflowing_in_half(graph: Graph, region: Region, exit_value: Value) -> str:
    """The name of a float16 value before ``exit_value`` that values of unit scale make too large
    for half precision; '' if there is none.
    """
    nodes = graph.ancestors([exit_value], stop=[region.entry, *region.sizes])
    values = [v for n in nodes for v in n.outputs if v.dtype == np.float16 and not v.is_constant]
    if not values:
        return ""
    run = RegionRunner(graph, Region(region.entry, tuple(values), tuple(nodes), region.sizes))
    for shape in probe_shapes(region):
        largest = run.largest(np.random.default_rng(0).standard_normal((1, *shape)))
        if largest is not None:
            over = (v for v, size in zip(values, largest, strict=True) if size > _LARGEST_HALF)
            return next((v.name for v in over), "")
    return ""
