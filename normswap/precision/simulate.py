"""A model run as a device in half precision would run it, and what that shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from normswap.graph.graph import Array, Node
from normswap.graph.simulation import Overflow, Simulation
from normswap.model import Model
from normswap.precision.constants import changed_constants
from normswap.precision.formats import format_called


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


def norm_of_nodes(model: Model) -> dict[Node, str]:
    """The names of the norms that nodes are part of."""
    graph, names = model.graph, {}
    for site in model.sites:
        ends = [graph.value(site.output)], [graph.value(site.input)]
        names.update(dict.fromkeys(graph.ancestors(*ends), site.name))
    return names
