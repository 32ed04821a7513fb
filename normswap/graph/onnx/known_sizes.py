"""The sizes that an ONNX graph computes from shapes, where it makes shapes of them again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from normswap.graph.graph import Array
from normswap.graph.onnx.constants import constant_tensor
from normswap.graph.onnx.runner import Step
from normswap.graph.onnx.subgraphs import nested_operators
from normswap.graph.operators import operator

_LONGEST = 64  # elements of anything that is computed here
_log = logging.getLogger(__name__)
Shapes = Mapping[str, tuple[int, ...] | None]


class KnownSizes:
    """What a graph computes of small constants and known shapes.

    Its nodes are in topological order.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._arrays: dict[ir.Value, Array] = {}
        self._told: set[ir.Value] = set()

    def found(self, shapes: Shapes) -> dict[str, Array]:
        """The integers that nodes of unknown shape read, by the names of the values; each once."""
        unknown = [n for n in self._graph if any(shapes[str(v.name)] is None for v in n.outputs)]
        wanted = {v for n in unknown for v in n.inputs if v is not None and _is_computed(v)}
        wanted -= self._told
        needed = self._behind(wanted)
        for node in self._graph if needed else ():
            if node in needed:
                self._arrays.update(self._results(node, shapes))
        known = [v for v in wanted if v in self._arrays and self._arrays[v].dtype.kind in "iu"]
        self._told.update(known)
        return {str(value.name): self._arrays[value] for value in known}

    def _behind(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        """The nodes that compute ``values``, as far as those are not known yet."""
        nodes: set[ir.Node] = set()
        pending = list(values)
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or node in nodes or value in self._arrays or not _is_computed(value):
                continue
            nodes.add(node)
            if node.op_type != "Shape":
                pending.extend(v for v in node.inputs if v is not None)
        return nodes

    def _results(self, node: ir.Node, shapes: Shapes) -> dict[ir.Value, Array]:
        """Those outputs of a node that are known and small."""
        if node.op_type == "Shape":
            sizes = _sizes(node, shapes)
            return {} if sizes is None else {node.outputs[0]: sizes}
        reads = {str(v.name): self._known(v) for v in node.inputs if v is not None}
        arrays = {name: array for name, array in reads.items() if array is not None}
        if len(arrays) < len(reads) or operator(node.op_type).random or nested_operators(node):
            return {}
        try:
            step = Step(node, self._graph.opset_imports, dtype=None)
            results = step.run([arrays[name] for name in step.reads])
        except Exception as error:  # an operator may raise anything; then this stays unknown
            _log.debug("%s cannot be computed: %s", node.name, error)
            return {}
        found = dict(zip(step.writes, results, strict=True))
        small = {v: found[str(v.name)] for v in node.outputs if str(v.name) in found}
        return {value: array for value, array in small.items() if array.size <= _LONGEST}

    def _known(self, value: ir.Value) -> Array | None:
        if value in self._arrays:
            return self._arrays[value]
        tensor = constant_tensor(value)
        return tensor.numpy() if tensor is not None and tensor.size <= _LONGEST else None


def _is_computed(value: ir.Value) -> bool:
    return value.producer() is not None and constant_tensor(value) is None


def _sizes(node: ir.Node, shapes: Shapes) -> Array | None:
    """What a Shape node yields."""
    source = node.inputs[0]
    shape = shapes.get(str(source.name)) if source is not None else None
    if shape is None:
        return None
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    span = slice(start.as_int() if start else None, end.as_int() if end else None)
    return np.array(shape[span], np.int64)
