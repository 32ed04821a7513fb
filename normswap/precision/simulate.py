"""A model run as a device in half precision would run it, and what that shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Node, Runner, Value
from normswap.graph.simulation import Overflow, Simulation
from normswap.model import Model
from normswap.precision.constants import changed_constants
from normswap.precision.formats import FORMATS, format_called
from normswap.precision.integers import INTEGER_FORMATS
from normswap.precision.quantised import QuantisedModel


class SimulatedModel:
    """``model`` in the simulated ``format`` 'float16' or 'bfloat16': a float32 model as if it were
    converted, one that is in the format as a device without float32 accumulation computes it.

    What is modelled is in ``graph/simulation.py``. Raises NormswapError for another format.

    Examples:
        >>> simulated = SimulatedModel(load("vit.onnx"), "float16")
        >>> (logits,) = simulated.run({"pixel_values": images})
        >>> simulated.overflows[0].value.name
    """

    def __init__(self, model: Model, format: str) -> None:
        self.model, self.format = model, format_called(format)
        graph = model.graph
        self._run = Simulation(graph, graph.inputs, graph.outputs, self.format.dtype)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs in order, in their own dtypes."""
        self.model.check_feeds(feeds)
        return self._run([np.asarray(feeds[spec.name]) for spec in self.model.inputs])

    @property
    def says(self) -> str:
        """What was done, for a report."""
        return f"every value rounded to {self.format.name}"

    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> Runner:
        """A function that computes ``outputs`` from arrays for ``inputs``."""
        return self.model.graph.slice(inputs, outputs, self.format.dtype)

    def findings(self) -> Iterator[tuple[str, str]]:
        """What the runs so far have shown, each with the kind of finding that it is."""
        if overflow := self.overflow_text():
            yield "overflow", overflow
        for message in self.vanished_texts():
            yield "underflow", message

    @property
    def overflows(self) -> list[Overflow]:
        """Where finite values gave infinity or NaN in the runs so far, in order."""
        return self._run.overflows

    def overflow_text(self) -> str:
        """A sentence on the first of ``overflows``; '' where there is none."""
        if not self.overflows:
            return ""
        first, name = self.overflows[0], self.format.name
        beyond = f"{first.magnitude:.4g} is beyond {self.format.largest:.6g}"
        cause = beyond if first.magnitude else "it gives NaN or infinity of finite values"
        others = len(self.overflows) - 1
        more = f"; {others} more {'places' if others > 1 else 'place'} behind it" if others else ""
        return f"not finite in {name}, first at {self._place(first)}: {cause}{more}"

    def vanished_texts(self) -> Iterator[str]:
        """A sentence on each number, such as an epsilon or a bound, that the format makes 0."""
        readers: dict[float, list[Node]] = {}
        for found in changed_constants(self.model.graph, self.format):
            if found.is_single and not found.becomes:
                readers.setdefault(found.number, []).append(found.reader)
        for number, nodes in readers.items():
            first = self._place(Overflow(nodes[0].output, nodes[0], 0.0))
            where = f"in {len(nodes)} places, first by " if len(nodes) > 1 else ""
            yield f"{number:.4g} is 0 in {self.format.name}, read {where or 'by '}{first}"

    def _place(self, found: Overflow) -> str:
        name = f"'{found.value.name}'"
        if found.node is None:
            return f"the {'constant' if found.value.is_constant else 'input'} {name}"
        norm = norm_of_nodes(self.model).get(found.node)
        return f"{name} ({found.node.op}{f' in the norm {norm}' if norm else ''})"


SIMULATED = (*FORMATS, *INTEGER_FORMATS)
"""What a model can be simulated in."""


def simulated(
    model: Model, format: str, calibration: Sequence[Mapping[str, Array]]
) -> SimulatedModel | QuantisedModel:
    """``model`` in one of ``SIMULATED``. ``calibration``: feeds for the ranges of integers. Raises
    NormswapError for another name."""
    if format in INTEGER_FORMATS:
        return QuantisedModel(model, format, calibration)
    if format not in FORMATS:
        raise NormswapError(f"'{format}' is none of the formats {', '.join(SIMULATED)}")
    return SimulatedModel(model, format)


def norm_of_nodes(model: Model) -> dict[Node, str]:
    """The names of the norms that nodes are part of."""
    graph, names = model.graph, {}
    for site in model.sites:
        ends = [graph.value(site.output)], [graph.value(site.input)]
        names.update(dict.fromkeys(graph.ancestors(*ends), site.name))
    return names
