"""One node of an ONNX graph, evaluated by onnx's reference evaluator: by the version of the
operator that the graph's operator set names, and with every floating-point value in float64 or in
its own dtype.

The evaluator of onnx takes the defaults of absent attributes from the newest version, and for many
operators has the newest version's meaning alone. Here the defaults are those of the version in use
(``_complete``), and ``float64_ops`` has the operators whose meaning has changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import _op

from normswap.errors import NormswapError, first_line
from normswap.graph.onnx.float64_ops import float64_ops
from normswap.graph.onnx.nodes import DOMAINS, captured_values, nested_operators
from normswap.graph.onnx.results import Result, as_arrays, in_double

_FLOAT_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
_TYPES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")
"""Attributes that hold the type of a result, or in which one is computed."""
_CHECKS = {
    kind.run
    for kind in (OpRun, _op.OpRunUnary, _op.OpRunUnaryNum, _op.OpRunBinary, _op.OpRunBinaryNum)
}


class Reference:
    """A node as a graph of its own.

    ``opsets``: the versions in which it is written. ``double``: whether everything that is
    floating is computed in float64; casts between float types are identities there.
    Raises NormswapError for an operator that the evaluator lacks.
    """

    def __init__(self, node: ir.Node, opsets: Mapping[str, int], double: bool) -> None:
        proto = ir.serde.serialize_node(node)
        captured = [str(value.name) for value in captured_values(node)]
        self.name = f"{node.domain or 'ai.onnx'}.{node.op_type}"
        self.reads = list(dict.fromkeys([*(n for n in proto.input if n), *captured]))
        self.writes = [name for name in proto.output if name]
        graph = onnx.GraphProto(name="step", node=[proto])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in self.reads)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.writes)
        ops = float64_ops({node.op_type, *nested_operators(node)})
        kind = _InDouble if double else _Versioned
        try:
            self._evaluator = kind(graph, opsets=_plain(opsets), new_ops=ops)
        except Exception as error:  # it may raise anything for an operator that it does not know
            raise NormswapError(
                f"the operator {self.name} cannot be evaluated: {first_line(error)}"
            ) from error
        self._inputs, self._outputs = list(proto.input), list(proto.output)
        self._direct = _direct(self._evaluator.rt_nodes_[0]) if double else None

    def run(self, results: Sequence[Result]) -> list[Result]:
        """What it writes, from what it reads. Raises NormswapError where that fails."""
        feeds = dict(zip(self.reads, results, strict=True))
        try:
            with np.errstate(all="ignore"):
                if self._direct is None:
                    found = self._evaluator.run(None, feeds)
                else:
                    yielded = self._direct(*(feeds[n] if n else None for n in self._inputs))
                    found = [r for r, name in zip(yielded, self._outputs, strict=False) if name]
                    return [in_double(result) for result in found]
        except MemoryError:
            raise
        except Exception as error:
            raise NormswapError(
                f"the operator {self.name} cannot be evaluated: {first_line(error)}"
            ) from error
        return [as_arrays(result) for result in found]


def _direct(op: OpRun) -> Callable[..., tuple[Result, ...]] | None:
    """The computation of an operator without what the evaluator does around it, which takes longer
    than most of them; None where that does more than to check types."""
    plain = type(op).run in _CHECKS
    if not plain or op.need_context() or op.has_linked_attribute or op.has_subgraph:
        return None
    if type(op).run is not OpRun.run:  # these give no attributes
        return op._run
    return functools.partial(op._run, **{name: getattr(op, name) for name in op.attributes_names_})


class _Versioned(ReferenceEvaluator):
    """Every operator by its own version, in the bodies of others and of functions too."""

    @staticmethod
    def convert(result: Result) -> Result:
        return as_arrays(result)

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        if node.domain in DOMAINS:
            node.domain = ""
        _complete(node, self.opsets)
        load = super()._load_impl(node, input_types)

        def loaded(*args: Any, **kwargs: Any) -> Any:
            op = load(*args, **kwargs)
            run, convert = op.run, self.convert
            op.run = lambda *a, **k: tuple(convert(result) for result in run(*a, **k))
            return op

        return loaded


class _InDouble(_Versioned):
    """The same with every floating value in float64."""

    @staticmethod
    def convert(result: Result) -> Result:
        return in_double(result)

    def _init(self) -> None:
        super()._init()
        self.rt_inits_: dict[str, Result]
        for name, held in self.rt_inits_.items():
            self.rt_inits_[name] = in_double(held)

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i in _FLOAT_TYPES:
                attribute.i = onnx.TensorProto.DOUBLE
        return super()._load_impl(node, input_types)


def _complete(node: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
    """Writes out the attributes that are absent and have another default in the newest version."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        newest = onnx.defs.get_schema(node.op_type, node.domain)
    except onnx.defs.SchemaError:
        return
    present = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        later = newest.attributes.get(name)
        same = later is not None and later.default_value == default
        if name not in present and default.type and not same:
            node.attribute.append(default)


def _plain(opsets: Mapping[str, int]) -> dict[str, int]:
    """The versions by the names of domains as nodes have them."""
    return {("" if domain in DOMAINS else domain): number for domain, number in opsets.items()}
