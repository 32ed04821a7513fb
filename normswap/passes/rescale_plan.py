"""What ``rescale`` is about to do to a graph: which streams take which powers of two."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.graph.linear import Linear
from normswap.graph.operators import norm_operator
from normswap.norms.site import Site
from normswap.passes.algebra.inner_scales import difference_of_squares, inner_scales
from normswap.passes.algebra.rules import SCALE
from normswap.passes.algebra.scales import is_scale, scale
from normswap.passes.algebra.spread import Norms, Spread, Start, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal
from normswap.passes.norm_operator import ROW_NORMS, replace_norm
from normswap.passes.select import why_left
from normswap.precision.formats import binary_places
from normswap.precision.headroom import inside_of
from normswap.precision.limits import Limits

_FURTHEST = 24  # halvings beyond those of a stream, for the squares inside its norms
_SMALLEST_FLOAT = 2.0**-126  # that has all its digits, for an epsilon
_NAMED = 3


class Plan:
    """What becomes of a graph, which is edited by ``write`` alone.

    ``operators``: those that norms may be written as, each with why not ('' where they may);
    ``wanted``: others, which have to be asked for first. ``done``: sites that change. ``only``:
    sites, without which nothing is done to a stream; None for all streams and all values.
    """

    def __init__(
        self,
        graph: Graph,
        located: Sequence[Site],
        limits: Limits,
        operators: Mapping[str, str],
        only: Collection[Site] | None,
    ) -> None:
        self.graph, self.located, self.limits = graph, located, limits
        self.operators, self.only = operators, only
        self.edits = WeightEdits(graph, limits.held_in.dtype)
        self.norms = Norms(graph, located, SCALE)
        self.wanted: set[str] = set()
        self.reads: dict[Site, int] = {}  # the halvings of what a norm reads, and of what it gives
        self.writes: dict[Site, int] = {}
        self.as_operators: dict[Site, str] = {}  # why
        self.leaving: dict[Value, int] = {}
        self._mended: set[Value] = set()
        self._refused: dict[Value, str] = {}
        self._sizes: dict[Value, str] = {}  # of the refused values, in words
        self._blamed: dict[Site, str] = {}
        self._notes: list[str] = []

    @property
    def done(self) -> set[Site]:
        return {*self.reads, *self.writes, *self.as_operators}

    @property
    def modifies(self) -> bool:
        return bool(self._mended or self.as_operators)

    @property
    def notes(self) -> list[str]:
        refused: dict[str, list[Value]] = {}
        for value, reason in self._refused.items():
            if value not in self._mended:
                refused.setdefault(reason, []).append(value)
        told = [
            f"'{site.name}' is written as {norm_operator(site.kind)}: {why}"
            for site, why in self.as_operators.items()
        ]
        for reason, (first, *others) in refused.items():
            more = f" (and {len(others)} more)" if others else ""
            told.append(f"{self._sizes[first]}{more}; it stays: {reason}")
        return [*self._notes, *told]

    def why_not(self, site: Site) -> str:
        """Why a site is not done."""
        other = why_left(site, ROW_NORMS)
        x = self.graph.value(site.input)
        found = self._blamed.get(site) or self._refused.get(x, "")
        if found:
            return found
        if other or site in self.norms.reasons:
            return other or self.norms.reasons[site]
        left, name = binary_places(self.limits.of(x), self.limits.held_in), self.limits.held_in.name
        return f"there is headroom: {left:.1f} binary places to the end of {name}"

    # -- planning ------------------------------------------------------------------------------

    def make(self) -> None:
        inside = {v for site in self.located for v in inside_of(self.graph, site)}
        of_data = self.graph.descendants(self.graph.inputs)  # others are made of sizes
        for node in self.graph.nodes:
            for value in (v for v in node.outputs if v in of_data):
                whole = self._with_bias(value)
                if whole not in self._mended and value not in inside and self._exceeds(whole):
                    self._mend(whole)
        for site in self.located:
            if site in self.reads or (self.only is not None and site not in self.only):
                continue
            if site.kind in ROW_NORMS and not why_left(site, ROW_NORMS):
                self._check_spelling(site)

    def _with_bias(self, value: Value) -> Value:
        """The result of a weight, for what lies between its product and its bias."""
        weight = None if value.producer is None else self.edits.weight_at(value.producer)
        return value if weight is None else weight.output

    def _size(self, value: Value) -> float:
        """How large a value becomes, or the product to which its bias is added."""
        weight = None if value.producer is None else self.edits.weight_of(value.producer)
        if not isinstance(weight, Linear) or weight.adder is None:
            return self.limits.of(value)
        return max(self.limits.of(value), self.limits.of(weight.product.output))

    def _exceeds(self, value: Value) -> bool:
        return self.limits.halvings(self._size(value)) > 0

    def _mend(self, value: Value) -> None:
        self._sizes[value] = self.limits.says(called(value), self._size(value))
        if value in self.graph.outputs:
            self._refused[value] = "it is an output of the model"
            return
        reasons = []
        for attempt in (self._of_stream, self._against_constants, self._against_keys):
            try:
                attempt(value)
            except Refusal as refusal:
                reasons.append(str(refusal))
            else:
                return
        self._refused[value] = reasons[0]

    def _of_stream(self, value: Value) -> None:
        """2^-k on all that ``value`` is a part of."""
        trial = self._spread(value, 1)
        try:
            self._make_stream(value, trial.checked())
        except Refusal as refusal:
            for site in self.located:
                if trial.reaches(site):
                    self._blamed.setdefault(site, f"{refusal} ({self._sizes[value]})")
            raise

    def _make_stream(self, value: Value, trial: Spread) -> None:
        sites = [site for site in self.located if trial.reaches(site)]
        written = list(trial.behind.values())
        if self.only is not None and not any(site in self.only for site in [*sites, *written]):
            return
        k = self.limits.halvings(self._largest(trial))
        k, spelled = self._depth(sites, k)
        change = self._spread(value, k).checked()
        actions = []
        operators: dict[Site, str] = {}
        for site, reads, writes in [*((s, k, 0) for s in sites), *((s, 0, k) for s in written)]:
            if reads and not _is_operator(self.graph, site) and site not in spelled:
                operators[site] = self._why_operator(site, k)
                continue
            if reads and _is_operator(self.graph, site):
                self._check_epsilon(site, k)
                continue
            if _is_operator(self.graph, site) or site in self.as_operators:
                continue
            try:
                found = inner_scales(self.graph, site, -reads, -writes)
            except Refusal as refusal:
                operators[site] = str(refusal)
                continue
            for (node, index), exponent in found.constants.items():
                by = scale(2.0**exponent, node.output.rank or 0)
                actions.append(self.edits.changing_constant(node, index, by))
        self._check_operators(operators)
        leaving = [v for v in change.known if v in self.graph.outputs]
        if not all(is_scale(change.known[v]) for v in leaving):
            raise Refusal("a part of an output of the model would have to change")
        if not sites and any(self._exceeds(v) for v in leaving):
            raise Refusal(f"it leaves the model, as '{leaving[0].name}'")
        for action in (change.act, *actions):
            action()
        self.reads |= dict.fromkeys(sites, k)
        self.writes |= dict.fromkeys(written, k)
        self.as_operators |= operators
        self.leaving |= dict.fromkeys(leaving, k)
        self._tell(value, change, k, sites)

    def _tell(self, value: Value, change: Spread, k: int, sites: Sequence[Site] = ()) -> None:
        self._mended |= set(change.known)
        largest = self._largest(change)
        names = ", ".join(f"'{site.name}'" for site in sites[:_NAMED])
        names += f" and {len(sites) - _NAMED} more" * (len(sites) > _NAMED)
        what = f"the stream of {names}" if sites else f"{called(value)} and what it is made of"
        self._notes.append(
            f"{what}: times 2^-{k}, from {largest:.3g} to {np.ldexp(largest, -k):.3g}"
        )

    def _against_constants(self, value: Value) -> None:
        """Logits against the constant that scales them behind the product."""
        readers = value.readers
        places = [_multiplier(node, value) for node in readers]
        if not _is_product_of_values(value.producer, self.edits) or not readers:
            raise Refusal("it is no product of two values")
        if any(place is None for place in places):
            raise Refusal("no constant scales it")
        around = frozenset(readers)
        trial = self._spread(value, 1, around).checked()
        k = self.limits.halvings(self._largest(trial))
        change = self._spread(value, k, around).checked()
        self._check_bare(change)
        actions = [
            self.edits.changing_constant(
                node, index, scale(2.0 ** (sign * k), node.output.rank or 0)
            )
            for node, (index, sign) in zip(readers, filter(None, places), strict=True)
        ]
        for action in (change.act, *actions):
            action()
        self._tell(value, change, k)

    def _against_keys(self, value: Value) -> None:
        """Queries against keys, or the other way, with their product as it was."""
        trial = self._spread(value, 1)
        for operand in trial.known:
            for node, index in operand.uses:
                other = _factor_beside(node, index, self.edits)
                if other is None or not is_scale(trial.known[operand]):
                    continue
                around = frozenset([node])
                first = self._spread(value, 1, around)
                if first.refusal or operand not in first.known or other in first.known:
                    continue
                k = self.limits.halvings(self._largest(first))
                second = self._spread(other, -k, around)
                if second.refusal or any(
                    self.limits.halvings(np.ldexp(self._size(v), k)) for v in second.known
                ):
                    continue
                first = self._spread(value, k, around).checked()
                self._check_bare(first)
                self._check_bare(second)
                first.act()
                again = self._spread(other, -k, around)
                assert not again.refusal, again.refusal  # of the other rows of a weight at most
                again.act()
                self._tell(value, first, k)
                return
        raise Refusal("nothing takes the scale against it")

    def _check_bare(self, change: Spread) -> None:
        """Raises Refusal for a change that reaches norms or outputs."""
        if change.behind or any(v in self.graph.outputs for v in change.known):
            raise Refusal("norms or outputs of the model would have to change with it")
        if any(change.reaches(site) for site in self.located) or self.only is not None:
            raise Refusal("it is a part of a stream")

    def _spread(self, value: Value, k: int, around: frozenset[Node] = frozenset()) -> Spread:
        if value.rank is None:
            raise Refusal(f"'{value.name}' has no known shape")
        change, norms = scale(2.0**-k, value.rank), self.norms
        start = Start(  # how large all becomes is measured
            value, change, downward=False, around=around, norms=norms, leaves=True, bounded=True
        )
        return spread(self.edits, start, or_part=True)

    def _largest(self, change: Spread) -> float:
        """Of what changes as a whole; the part of a value that changes has one of its own."""
        whole = [value for value, by in change.known.items() if is_scale(by)]
        return max(self._size(value) for value in whole)

    # -- norms ---------------------------------------------------------------------------------

    def _depth(self, sites: Sequence[Site], k: int) -> tuple[int, list[Site]]:
        """How many halvings a stream takes, at least ``k``, and which of the norms that read it
        keep their spelling then."""
        spelled: dict[Site, int] = {}
        for site in sites:
            if not _is_operator(self.graph, site):
                fewest = next((n for n in range(k, k + _FURTHEST) if self._fits(site, n)), None)
                spelled |= {} if fewest is None else {site: fewest}
        while spelled:
            deepest = max(spelled.values())
            kept = {
                site: fewest
                for site, fewest in spelled.items()
                if self.limits.holds_epsilon(site.epsilon, deepest) and self._fits(site, deepest)
            }
            if len(kept) == len(spelled):
                return deepest, list(kept)
            spelled = kept
        return k, []

    def _fits(self, site: Site, k: int) -> bool:
        """Whether all inside a norm that is spelled out is held with ``k`` halvings, and its
        statistics keep their digits."""
        if difference_of_squares(self.graph, site) is not None:
            return False
        try:
            found = inner_scales(self.graph, site, -k, 0).values
        except Refusal:
            return False
        x = self.graph.value(site.input)
        for value, exponent in found.items():
            if self.limits.halvings(float(np.ldexp(self.limits.of(value), exponent))):
                return False
            is_statistic = math.prod(value.shape or ()) < math.prod(x.shape or ())
            if is_statistic and self.limits.loses_digits(value, exponent):
                return False
        return True

    def _check_spelling(self, site: Site) -> None:
        """Writes a norm that reads no scaled stream as an operator where its spelling overflows."""
        if _is_operator(self.graph, site) or site.input == site.output:
            return
        inside = [v for v in inside_of(self.graph, site) if self._exceeds(v)]
        difference = difference_of_squares(self.graph, site)
        if not inside and difference is None and self.limits.holds_epsilon(site.epsilon, 0):
            return
        if inside and self._mend_squares(site):
            return
        operators = {site: self._why_operator(site, 0)}
        try:
            self._check_operators(operators)
        except Refusal as refusal:
            self._blamed.setdefault(site, str(refusal))
        else:
            self.as_operators |= operators

    def _mend_squares(self, site: Site) -> bool:
        """Scales the stream of a norm whose spelling can stay then; whether it could."""
        x = self.graph.value(site.input)
        try:
            trial = self._spread(x, 1).checked()
            sites = [other for other in self.located if trial.reaches(other)]
            _, spelled = self._depth(sites, self.limits.halvings(self._largest(trial)))
            if site in spelled:
                self._make_stream(x, trial)
        except Refusal:
            return False
        return site in self.reads

    def _why_operator(self, site: Site, k: int) -> str:
        held_in = self.limits.held_in.name
        if not self.limits.holds_epsilon(site.epsilon, k):
            return f"its epsilon of {site.epsilon * 4.0**-k:.2g} is no number of {held_in}"
        difference = difference_of_squares(self.graph, site)
        if difference is not None:
            what = f"{called(difference)}, the difference of two squares"
            return f"{held_in} leaves few digits of {what}"
        inside = max(inside_of(self.graph, site), key=self.limits.of)
        return self.limits.says(f"inside it {called(inside)}", self.limits.of(inside))

    def _check_operators(self, operators: Mapping[Site, str]) -> None:
        """Raises Refusal unless the graph can have the operators of these sites."""
        for site, why in operators.items():
            name = norm_operator(site.kind)
            if name not in self.operators:
                self.wanted.add(name)
            elif refusal := self.operators[name]:
                raise Refusal(
                    f"'{site.name}' would have to be written as {name} ({why}): {refusal}"
                )

    def _check_epsilon(self, site: Site, k: int) -> None:
        if 0 < site.epsilon * 4.0**-k < _SMALLEST_FLOAT:
            raise Refusal(f"the epsilon of '{site.name}' would leave float32")

    # -- writing -------------------------------------------------------------------------------

    def write(self) -> None:
        for value, k in self.leaving.items():
            self._restore(value, k)
        for site in reversed(self.located):  # a norm may read the output of the one before it
            reads, writes = self.reads.get(site, 0), self.writes.get(site, 0)
            if site in self.as_operators or (site in self.done and _is_operator(self.graph, site)):
                replace_norm(self.graph, _scaled(self.graph, site, reads, writes), site)
        self.edits.write()
        self.graph.prune()

    def _restore(self, value: Value, k: int) -> None:
        factor = self.graph.add_constant(np.array(2.0**k, value.dtype), f"{value.name}.scale")
        name = f"{value.name}.restored"
        like = value.producer
        restored = self.graph.insert("Mul", [value, factor], name=name, like=like)
        self.graph.replace_uses(value, restored, keep=value.readers)
        self._notes.append(f"in front of the output '{value.name}' one Mul takes 2^{k}")


def _scaled(graph: Graph, site: Site, reads: int, writes: int) -> Site:
    """The norm of a 2^-reads of its input that gives 2^-writes of its output."""
    by = 2.0**-writes
    weight = site.weight
    if weight is None and writes:
        weight = np.ones(site.normalized_shape)
    return replace(
        site,
        epsilon=graph.as_attribute(site.epsilon) * 4.0**-reads,
        weight=None if weight is None else weight * by,
        bias=None if site.bias is None else site.bias * by,
    )


def _is_operator(graph: Graph, site: Site) -> bool:
    node = graph.value(site.output).producer
    return site.spelling == "op" and node is not None and node.op == norm_operator(site.kind)


def _is_product_of_values(node: Node | None, edits: WeightEdits) -> bool:
    if node is None or node.operator.product != "matrix" or edits.weight_of(node) is not None:
        return False
    return len(set(node.dynamic_inputs())) == 2


def _multiplier(node: Node, value: Value) -> tuple[int, int] | None:
    """Which input of a product is the constant that multiplies ``value`` (1) or divides it (-1)."""
    if node.operator.arithmetic != "product" or node.dynamic_inputs() != [value]:
        return None
    index = 1 - node.inputs.index(value)
    if node.operator.commutes:
        return index, 1
    return (index, -1) if index == 1 else None


def _factor_beside(node: Node, index: int, edits: WeightEdits) -> Value | None:
    """The other operand of the product of queries and keys that reads a value."""
    fused = node.operator.attention == "fused" and index < 2
    if not fused and not _is_product_of_values(node, edits):
        return None
    other = node.input(1 - index)
    return None if other is None or other is node.inputs[index] else other


def called(value: Value) -> str:
    node = value.producer
    return f"'{value.name}'" if node is None else f"{node.op} '{value.name}'"
