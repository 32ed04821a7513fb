"""A model in half precision, with islands of float32 only where they are needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.graph.rounding import STANDS_FOR_INFINITY, as_half, is_half
from normswap.graph.simulation import Simulation
from normswap.model import Model, Step
from normswap.precision.constants import ChangedConstant, changed_constants
from normswap.precision.formats import Format, format_called
from normswap.precision.simulate import norm_of_nodes

_AT_ONCE = 1 << 20  # numbers of a weight
_NO_KERNEL = "NOT_IMPLEMENTED"  # what ONNX Runtime says of a type that a device lacks


@dataclass(frozen=True)
class Island:
    """Nodes that still compute in float32, those of one norm or one by itself: ``name``, how many
    ``nodes``, and the ``reason``."""

    name: str
    nodes: int
    reason: str


@dataclass(frozen=True)
class Conversion:
    """A model that was converted.

    Attributes:
        model: the new model.
        format: 'float16' or 'bfloat16'.
        islands: what was kept in float32.
        notes: what rounding did to constants that is more than rounding.

    Examples:
        >>> converted = convert(load("vit.onnx"), "float16")
        >>> [(island.name, island.reason) for island in converted.islands]
    """

    model: Model
    format: str
    islands: list[Island] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Keys: ``format``, ``islands`` ({name, nodes, reason}) and ``notes``."""
        islands = [
            {"name": island.name, "nodes": island.nodes, "reason": island.reason}
            for island in self.islands
        ]
        return {"format": self.format, "islands": islands, "notes": self.notes}


def converted(
    model: Model,
    name: str,
    keep_io: bool,
    keep: Iterable[str],
    batches: Sequence[Mapping[str, Array]],
) -> Conversion:
    """``normswap.convert`` on ``batches`` of feeds."""
    format = format_called(name)
    graph = model.graph.copy()
    settled = graph.settle_weights()
    if settled:
        model = replace(model, graph=graph)
    graph = model.graph
    held = [value for value in graph.values() if value.producer is None and value.is_constant]
    if any(is_half(value.dtype) for value in held):
        raise NormswapError(f"{model.name}: it has weights in half precision already")
    wide = _Wide(model, format)
    wide.ask(keep)
    notes = wide.look_at_constants(held)
    if settled:
        notes.append(f"weights that were also inputs are constants now: {', '.join(settled)}")
    wide.look_at_nodes()
    wide.look_at_data(batches)
    new = graph.in_half(format.dtype, list(wide.reasons), keep_io)
    why = "" if graph.load_refusal() else new.load_refusal()
    if why and _NO_KERNEL not in why:
        raise NormswapError(f"{model.name}: it cannot be loaded in {format.name}: {why}")
    if why:  # a model as it should be, for other devices
        notes.append(f"not run here: ONNX Runtime has no {format.name} on the CPU for all of it")
    islands = wide.islands()
    kept = [(island.name, f"in float32: {island.reason}") for island in islands]
    step = Step(f"conversion to {format.name}", 0, kept, notes)
    changed = replace(model, graph=new, path=None, history=(*model.history, step))
    if not keep_io:
        changed = _in_and_out(changed, format)
    _check_it_runs(changed)
    return Conversion(changed, format.name, islands, notes)


class _Wide:
    """Which nodes of a model compute in float32 still, each with the reason."""

    def __init__(self, model: Model, format: Format) -> None:
        self._model, self._graph, self._format = model, model.graph, format
        self._norms = norm_of_nodes(model)
        self._spelled = {site.name for site in model.sites if site.spelling != "op"}
        self.reasons: dict[Node, str] = {}
        self._islands: dict[Node, str] = {}  # of nodes that are together, the name of all of them

    def _add(self, node: Node, reason: str, island: str = "") -> None:
        """A spelled-out norm is kept whole: its values belong together."""
        norm = self._norms.get(node)
        whole = norm in self._spelled
        for other in [n for n, name in self._norms.items() if name == norm] if whole else [node]:
            self.reasons.setdefault(other, reason)
            self._islands.setdefault(other, island)

    def _add_vanishing(self, changed: ChangedConstant) -> None:
        """Keeps all between a number that the format makes 0 and what it holds again: what divides
        by x + 1e-12, or by the larger of both, reads 1e-12 where x is 0."""
        reason = f"its {changed.number:.4g} ('{changed.name}') is 0 in {self._format.name}"
        constant = [] if changed.value is None else [changed.value]
        nodes = [*self._graph.ancestors(constant), changed.reader]
        for node in [*nodes, *self._until_held(changed.reader, changed.number)]:
            self._add(node, reason, changed.reader.output.name)

    def _until_held(self, made: Node, number: float) -> set[Node]:
        """The readers of what may be ``number`` or, of its roots and multiples, what the format
        does not hold."""
        # A reader, the number of the step in front of it, and whether all there is held.
        steps: list[tuple[Node, int, bool]] = []
        pending = [(made, number, -1)]
        while pending:
            made, number, before = pending.pop()
            for value, node in ((v, node) for v in made.outputs for node in v.readers):
                result = self._result(node, value, number)
                held = all(self._holds(n) for n in (number, result) if n is not None)
                if result is not None:
                    pending.append((node, result, len(steps)))
                steps.append((node, before, held))
        needed = set()
        for index in range(len(steps) - 1, -1, -1):
            _, before, held = steps[index]
            if not held or index in needed:
                needed |= {index, before}
        return {steps[index][0] for index in needed if index >= 0}

    def _result(self, node: Node, value: Value, number: float) -> float | None:
        """What a node makes of a number, if it is a power or a multiple of it."""
        size = np.float64(number)
        with np.errstate(all="ignore"):  # a number may be of any size
            if degree := node.operator.homogeneity:
                return float(size**degree)
            if node.operator.arithmetic != "product" or node.dynamic_inputs() != [value]:
                return None
            index = node.inputs.index(value)
            factor = np.float64(abs(self._graph.scalar(node.input(1 - index)) or math.nan))
            if node.operator.commutes:
                return float(size * factor)
            return float(factor / size if index else size / factor)

    def _holds(self, number: float) -> bool:
        return 0 < float(self._format.rounded(number)) < math.inf

    def ask(self, patterns: Iterable[str]) -> None:
        """Raises NormswapError for a pattern that matches nothing."""
        for pattern in patterns:
            found = [node for node in self._graph.nodes if self._is_called(node, pattern)]
            if not found:
                raise NormswapError(
                    f"{self._model.name}: keep '{pattern}' matches no norm, module or value"
                )
            for node in found:
                self.reasons.setdefault(node, "asked for")

    def _is_called(self, node: Node, pattern: str) -> bool:
        names = [self._norms.get(node, ""), node.scope, *(value.name for value in node.outputs)]
        return any(name and fnmatchcase(name, pattern) for name in names)

    def look_at_constants(self, held: Iterable[Value]) -> list[str]:
        """Keeps what reads numbers that the format does not hold; notes of what it changes."""
        name, clipped, vanished, lost = self._format.name, [], 0, 0
        for changed in changed_constants(self._graph, self._format):
            if changed.is_single and not changed.becomes:
                self._add_vanishing(changed)
        for value in held:
            if value.dtype is None or not is_floating(value.dtype) or not value.uses:
                continue
            change = _change(np.asarray(self._graph.constant(value)), self._format)
            if change.beyond:
                for node in value.readers:
                    self._add(node, f"it reads {change.beyond:.4g} ('{value.name}'), beyond {name}")
            if change.clips:
                clipped.append(value.name)
            vanished, lost = vanished + bool(change.zeros), lost + change.zeros
        notes = []
        if clipped:
            limit = f"{self._format.largest:.6g}"
            notes.append(f"numbers that stand for infinity are {limit} now: {', '.join(clipped)}")
        if lost:
            notes.append(f"weights that are too small and became 0: {lost}, in {vanished} tensors")
        return notes

    def look_at_nodes(self) -> None:
        for node in self._graph.nodes:
            values = [v for v in (*node.inputs, *node.outputs) if v is not None]
            if not any(v.dtype is not None and is_floating(v.dtype) for v in values):
                continue
            if why := self._graph.why_not_half(node, self._format.dtype):
                self.reasons.setdefault(node, why)

    def look_at_data(self, batches: Sequence[Mapping[str, Array]]) -> None:
        """Keeps what computes or reads values that the format does not hold on the data."""
        if not batches:
            return
        graph, dtype = self._graph, self._format.dtype
        watch = Simulation(graph, graph.inputs, graph.outputs, dtype, watch=True)
        for feeds in batches:
            watch([np.asarray(feeds[spec.name]) for spec in self._model.inputs])
        for place in watch.overflows:
            if place.magnitude and (place.node is not None or not place.value.is_constant):
                reason = f"{place.magnitude:.4g} on the data is beyond {self._format.name}"
                for node in ([place.node] if place.node else []) + place.value.readers:
                    self._add(node, reason)

    def islands(self) -> list[Island]:
        """Those of one norm together, the others by their first values, in order."""
        found: dict[tuple[str, str], int] = Counter()
        for node in self._graph.nodes:
            if node in self.reasons:
                norm = self._norms.get(node)
                alone = self._islands.get(node) or node.output.name
                name = norm if norm in self._spelled and norm else alone
                found[name, self.reasons[node]] += 1
        return [Island(name, nodes, reason) for (name, reason), nodes in found.items()]


@dataclass
class _Change:
    """What a format makes of a constant: the largest number ``beyond`` it, whether it ``clips``
    numbers that stand for infinity, and how many of several become ``zeros``."""

    beyond: float = 0.0
    clips: bool = False
    zeros: int = 0


def _change(array: Array, format: Format) -> _Change:
    change, flat = _Change(), array.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        part = np.asarray(flat[start : start + _AT_ONCE], np.float64)
        half = np.asarray(as_half(part, format.dtype), np.float64)
        finite, size = np.isfinite(part), np.abs(part)
        beyond = finite & ~np.isfinite(half)
        change.beyond = max(change.beyond, float(size[beyond].max(initial=0)))
        change.clips |= bool((finite & (size >= STANDS_FOR_INFINITY) & (half != part)).any())
        if flat.size > 1:
            change.zeros += int(((half == 0) & (part != 0)).sum())
    return change


def _in_and_out(model: Model, format: Format) -> Model:
    """The model with the dtypes that its graph's inputs have now."""
    inputs = tuple(
        replace(spec, dtype=format.dtype if is_floating(spec.dtype) else spec.dtype)
        for spec in model.inputs
    )
    examples = {
        spec.name: np.asarray(model.examples[spec.name]).astype(spec.dtype) for spec in inputs
    }
    return replace(model, inputs=inputs, examples=examples)


def _check_it_runs(model: Model) -> None:
    """Raises NormswapError where the converted model does not run on its examples."""
    graph: Graph = model.graph
    if graph.load_refusal():
        return  # the original does not load either
    try:
        graph.whole()([model.examples[spec.name] for spec in model.inputs])
    except Exception as error:  # the runtimes' exceptions share no base class
        raise NormswapError(
            f"{model.name}: it does not run in half precision ({first_line(error)}); keep what "
            "does not in float32"
        ) from error
