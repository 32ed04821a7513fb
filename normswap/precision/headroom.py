"""How much room a model leaves to what half precision holds, on real data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Node, Value
from normswap.io.data import Data, load_data
from normswap.model import Model, Progress
from normswap.norms.site import Site, site_nodes
from normswap.precision.constants import LostConstant, lost_constants
from normswap.precision.formats import FORMATS, Format, binary_places, format_called
from normswap.precision.magnitudes import Magnitude, Measured, magnitudes
from normswap.shown import Shown

KINDS = ("stream", "norm", "logits", "hidden", "value")


@dataclass(frozen=True)
class Place:
    """A value of the model and how large it becomes.

    Attributes:
        name: the graph's.
        kind: 'stream' (a norm reads it), 'norm' (inside a norm that is spelled out), 'logits' (of
            an attention, also inside a fused one), 'hidden' (an activation reads or gives it), or
            'value'.
        operator: what computes it, '' for an input.
        module: the module path that the graph records, '' where it records none.
        largest: its largest finite magnitude; of a mean that of the sum before it is divided.
        smallest: its smallest one that is not 0.

    Examples:
        >>> place = headroom(model, data="images").first_over("float16")
        >>> place.name, place.operator, place.places("float16")
    """

    name: str
    kind: str
    operator: str
    module: str
    largest: float
    smallest: float

    def places(self, format: str) -> float:
        """The binary places left to what a format holds; below 0 it overflows."""
        return binary_places(self.largest, format_called(format))

    def vanishes(self, format: str) -> bool:
        """Whether all of it is rounded to 0."""
        return bool(self.largest) and not float(format_called(format).rounded(self.largest))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "operator": self.operator,
            "module": self.module,
            "largest": self.largest,
            "smallest": self.smallest,
            "places": {name: _finite(self.places(name)) for name in FORMATS},
            "vanishes": [name for name in FORMATS if self.vanishes(name)],
        }


@dataclass(frozen=True)
class NormHeadroom:
    """A norm: the ``stream`` that it reads; where it is spelled out the value ``inside`` with the
    least room, its squares and sums among them; and that of all values ``behind`` it, up to those
    that norms read."""

    site: Site
    stream: Place
    inside: Place | None
    behind: Place | None = None

    def epsilon(self, format: str) -> float:
        """Its epsilon as a constant of a format: 1e-12 is 0 in float16."""
        return float(format_called(format).rounded(self.site.epsilon))

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site.name,
            "role": self.site.role,
            "tower": self.site.tower,
            "spelling": self.site.spelling,
            "stream": self.stream.to_json(),
            "inside": None if self.inside is None else self.inside.to_json(),
            "behind": None if self.behind is None else self.behind.to_json(),
            "epsilon": self.site.epsilon,
            "epsilon_rounded": {name: self.epsilon(name) for name in FORMATS},
        }


@dataclass(frozen=True, repr=False)
class Headroom(Shown):
    """How large each value of a model becomes, and what half precision makes of that.

    Attributes:
        model: its name.
        samples: how many samples were run.
        norms: in the order of execution.
        places: every floating-point value that was computed, in the order of the graph.
        constants: those that a format does not hold, in the order of the graph.

    Examples:
        >>> found = headroom(model, data="images")
        >>> [norm.site.name for norm in found.norms if norm.stream.places("float16") < 2]
    """

    view: ClassVar[str] = "normswap.report.headroom:headroom_view"

    model: str
    samples: int
    norms: list[NormHeadroom]
    places: list[Place]
    constants: list[LostConstant] = field(default_factory=list)

    def first_over(self, format: str) -> Place | None:
        """The first value, in the order of the graph, beyond what a format holds."""
        return next((place for place in self.places if place.places(format) < 0), None)

    def over(self, format: str) -> list[Place]:
        """All values beyond what a format holds, in the order of the graph."""
        return [place for place in self.places if place.places(format) < 0]

    def to_json(self) -> dict[str, Any]:
        """Keys: ``samples``; ``formats``, what each holds; ``first_over``, by format, a place or
        null; ``norms``; ``places``, those of attentions, activations and all that overflow; and
        ``constants``, in which null stands for infinity."""
        told = [p for p in self.places if p.kind in ("logits", "hidden") or _is_over(p)]
        first = {name: self.first_over(name) for name in FORMATS}
        return {
            "samples": self.samples,
            "formats": {name: _limits(held) for name, held in FORMATS.items()},
            "first_over": {n: None if p is None else p.to_json() for n, p in first.items()},
            "norms": [norm.to_json() for norm in self.norms],
            "places": [place.to_json() for place in told],
            "constants": [constant.to_json() for constant in self.constants],
        }


def headroom(
    model: Model,
    *,
    data: Any,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Headroom:
    """How large the values of a model become on real data, and what half precision makes of that.

    Args:
        model: of ``load``, in float32; one in half precision is run in float64.
        data: whatever ``load_data`` takes, such as a folder of images; inputs that it lacks are
            drawn at random.
        samples: use that many of ``data``, drawn at random (always the same).
        progress: ``progress(done, total, what)`` is called before each batch.

    Returns:
        The largest and smallest magnitudes of the norms' inputs and of every other value, and the
        first one that overflows.

    Raises:
        NormswapError: data that is missing or unfit, and a model that does not run.

    Examples:
        >>> found = headroom(load("vit.onnx"), data="images")
        >>> place = found.first_over("float16")
    """
    if data is None:
        raise NormswapError("headroom: needs data; give it what load_data takes")
    given = data if isinstance(data, Data) else load_data(data, model, samples, progress=progress)
    with model.at_fault():
        return described(model, magnitudes(model, given, progress))


def described(model: Model, measured: Measured) -> Headroom:
    """What was measured, told by norms and by the operators that could overflow."""
    graph, sites = model.graph, model.sites
    kinds = _kinds(graph, sites)
    by_value: dict[Value, Place] = {}
    places: list[Place] = []
    of_data = graph.descendants(graph.inputs)  # others are made of sizes
    for value in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
        node = value.producer
        if node is not None and value in measured.logits:
            places.append(_place(value, "logits", measured.logits[value]))
        if value in measured.values and value in of_data:
            by_value[value] = _place(value, kinds.get(value, "value"), measured.values[value])
            places.append(by_value[value])
    norms = []
    logits = measured.logits
    behind = _behind(graph, sites)
    for site in sites:
        x = by_value.get(graph.value(site.input))
        if x is None:  # what nothing needs
            continue
        inside = [by_value[v] for v in inside_of(graph, site) if v in by_value]
        values = behind.get(site, ())
        later = [by_value[v] for v in values if v in by_value]
        later += [_place(v, "logits", found) for v, found in logits.items() if v in values]
        norms.append(NormHeadroom(site, x, _worst(inside), _worst(later)))
    return Headroom(model.name, measured.samples, norms, places, lost_constants(graph))


def _worst(places: Iterable[Place]) -> Place | None:
    return max(places, key=lambda place: place.largest, default=None)


def _behind(graph: Graph, sites: Sequence[Site]) -> dict[Site, list[Value]]:
    """Behind each norm the values up to those that norms read; of two norms the later one's."""
    ends = {graph.value(site.input) for site in sites}
    last = {graph.value(site.output): site for site in sites}
    inside = {v for site in sites for v in inside_of(graph, site)}
    found: dict[Site, list[Value]] = {}
    for node in graph.nodes:
        reads = [] if node.operator.reads_sizes_only else node.dynamic_inputs()
        before = [last[v] for v in reads if v in last]
        for value in node.outputs if before else ():
            if value not in ends and value not in inside and value not in last:
                site = max(before, key=sites.index)
                last[value] = site
                found.setdefault(site, []).append(value)
    return found


def inside_of(graph: Graph, site: Site) -> list[Value]:
    """The values inside a norm that is spelled out: all but its input and output."""
    y = graph.value(site.output)
    nodes = [node for node in site_nodes(graph, site) if node.dynamic_inputs()]
    return [v for node in nodes for v in node.outputs if v is not y and v.uses]


def _kinds(graph: Graph, sites: Sequence[Site]) -> dict[Value, str]:
    kinds: dict[Value, str] = {}
    for node in graph.nodes:
        if node.operator.attention == "softmax":
            kinds |= dict.fromkeys(_scores(node), "logits")
        elif node.operator.activation and not node.operator.attention:
            kinds |= dict.fromkeys([node.data_input(), *node.outputs], "hidden")
    for site in sites:
        kinds |= dict.fromkeys(inside_of(graph, site), "norm")
    return kinds | {graph.value(site.input): "stream" for site in sites}


def _scores(softmax: Node) -> Iterator[Value]:
    """From the product of queries and keys to what the softmax reads."""
    value = softmax.data_input()
    while value.producer is not None:
        yield value
        node = value.producer
        if node.operator.product or not (node.operator.combines_two or node.operator.move):
            return
        data = node.dynamic_inputs()
        if not data:
            return
        value = next((v for v in data if _is_product(v)), data[0])


def _is_product(value: Value) -> bool:
    return value.producer is not None and bool(value.producer.operator.product)


def _place(value: Value, kind: str, found: Magnitude) -> Place:
    node = value.producer
    op, scope = ("", "") if node is None else (node.op, node.scope)
    return Place(value.name, kind, op, scope, found.largest, found.smallest)


def _is_over(place: Place) -> bool:
    return any(place.places(name) < 0 for name in FORMATS)


def _limits(held: Format) -> dict[str, float]:
    return {
        "largest": held.largest,
        "smallest_normal": held.smallest_normal,
        "smallest": held.smallest,
    }


def _finite(places: float) -> float | None:
    return places if math.isfinite(places) else None
