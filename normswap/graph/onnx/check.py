"""Whether an ONNX model is built as the standard says, so that the view and the passes may rely on
it: what is read is defined, names are unique, nodes have the inputs, outputs and attributes that
their operators are declared with, and tensors hold what their shapes say.

What a value of an attribute means (whether an axis exists) is not looked at here.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from normswap.errors import NormswapError, first_line, plain
from normswap.graph.graph import topological
from normswap.graph.onnx.nodes import DOMAINS, subgraphs

_LARGEST = 100_000  # nodes of a graph once its functions are inlined
_DEEPEST = 200  # functions that call one another; inlining recurses
_NAMED_ANEW = 15_000_000  # the names that inlining tries: all that are taken, for each copy


def check_functions(model: ir.Model) -> None:
    """Raises NormswapError for functions that call themselves, or that hold more once they are
    inlined than is read: each level of functions may multiply what the one below holds."""
    bodies: dict[ir.OperatorIdentifier | None, list[ir.Node]] = {
        key: list(function.all_nodes()) for key, function in model.functions.items()
    }
    bodies[None] = list(model.graph.all_nodes())
    called = {
        key: Counter(n.op_identifier() for n in body if n.op_identifier() in model.functions)
        for key, body in bodies.items()
    }
    depths: dict[ir.OperatorIdentifier | None, int] = {}
    order = topological([None], lambda key: called[key])
    for key in order:  # what is called comes first
        for other in called[key]:
            if other not in depths:
                raise NormswapError(f"its function '{plain(other[1])}' calls itself")
        depths[key] = 1 + max((depths[other] for other in called[key]), default=-1)
    copies: Counter[ir.OperatorIdentifier | None] = Counter({None: 1})
    for key in reversed(order):
        for other, count in called[key].items():
            copies[other] += count * copies[key]
    nodes = sum(copies[key] * (len(bodies[key]) - called[key].total()) for key in order)
    names = sum(copies[key] ** 2 // 2 * len(bodies[key]) for key in order)
    if nodes > _LARGEST or depths[None] > _DEEPEST or names > _NAMED_ANEW:
        most = max(copies.values())
        raise NormswapError(
            f"its functions are too many to inline: {_count(nodes)} nodes in {depths[None]} levels,"
            f" one of them {_count(most)} times; inline them where it was exported"
        )


def _count(number: int) -> str:
    return f"{number:,}" if number < 1 << 40 else "more than 2^40"


def check_structure(model: ir.Model) -> None:
    """Raises NormswapError, without the model's name, for the first thing that is not as the
    standard says. The model's functions are inlined."""
    _check_graph(model.graph, frozenset(), model.opset_imports)


def _check_graph(graph: ir.Graph, outer: frozenset[ir.Value], opsets: dict[str, int]) -> None:
    own = [*dict.fromkeys([*graph.inputs, *graph.initializers.values()])]
    own += [value for node in graph for value in node.outputs]
    names: dict[str, ir.Value] = {}
    for value in own:
        if value.name and names.setdefault(value.name, value) is not value:
            raise NormswapError(f"two of its values are called '{plain(value.name)}'")
    for value in graph.inputs:
        if not value.name:
            raise NormswapError("one of its inputs has no name")
    for value in graph.initializers.values():
        if value.const_value is None and value not in graph.inputs:
            raise NormswapError(f"its initializer '{plain(value.name)}' has no tensor")
        _check_tensor(value.const_value, value.name)
    defined = outer.union(own)
    for node in graph:
        _check_node(node, opsets.get(node.domain, opsets.get("", 1)))
        for read in node.inputs:
            if read is not None and read not in defined:
                raise NormswapError(f"{_called(node)} reads '{plain(read.name)}', which is nowhere")
        for body in subgraphs(node):
            _check_graph(body, defined, opsets)
    for value in graph.outputs:
        if value not in defined or not value.name:
            raise NormswapError(f"nothing computes its output '{plain(value.name)}'")


def _check_node(node: ir.Node, version: int) -> None:
    for attribute in node.attributes.values():
        _check_attribute(node, attribute)
    if not node.outputs:
        raise NormswapError(f"{_called(node)} has no output")
    schema = _schema(node.op_type, "" if node.domain in DOMAINS else node.domain, version)
    if schema is None:
        return
    given = len(node.inputs)
    needed = [
        p for p in schema.inputs if p.option == onnx.defs.OpSchema.FormalParameterOption.Single
    ]
    if not schema.min_input <= given <= schema.max_input or None in node.inputs[: len(needed)]:
        raise NormswapError(
            f"{_called(node)} has {sum(v is not None for v in node.inputs)} inputs, and it takes "
            f"{_range(schema.min_input, schema.max_input)}"
        )
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise NormswapError(
            f"{_called(node)} has {len(node.outputs)} outputs, and it gives "
            f"{_range(schema.min_output, schema.max_output)}"
        )
    for name, declared in schema.attributes.items():
        if declared.required and name not in node.attributes:
            raise NormswapError(f"{_called(node)} lacks its attribute {name}")
    if node.op_type == "Constant" and len(schema.attributes.keys() & node.attributes) != 1:
        raise NormswapError(f"{_called(node)} has no value, or several")
    types = _attribute_types().get((schema.domain, node.op_type), {})
    for name, attribute in node.attributes.items():
        if name in types and attribute.type.name not in types[name]:
            wanted = " or ".join(sorted(types[name]))
            raise NormswapError(
                f"{_called(node)} has the attribute {plain(name)} of the type "
                f"{attribute.type.name}, and it takes {wanted}"
            )


def _check_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.is_ref():
        raise NormswapError(
            f"{_called(node)} takes its attribute {plain(attribute.name)} from a function, and is "
            "in none"
        )
    if attribute.type == ir.AttributeType.UNDEFINED or attribute.value is None:
        raise NormswapError(
            f"{_called(node)} has the attribute {plain(attribute.name)} without type"
        )
    if attribute.type == ir.AttributeType.STRING and not isinstance(attribute.value, str):
        raise NormswapError(
            f"{_called(node)} has the attribute {plain(attribute.name)} not in UTF-8"
        )
    if attribute.type == ir.AttributeType.TENSOR:
        _check_tensor(attribute.value, f"{node.name}.{attribute.name}")
    if attribute.type == ir.AttributeType.TENSORS:
        for tensor in attribute.value:
            _check_tensor(tensor, f"{node.name}.{attribute.name}")


def _check_tensor(tensor: ir.TensorProtocol | None, name: str | None) -> None:
    if not isinstance(tensor, ir.serde.TensorProtoTensor):
        return
    if any(size < 0 for size in tensor.raw.dims):
        raise NormswapError(f"its tensor '{plain(name)}' has a negative size")
    if tensor.raw.HasField("raw_data"):
        return  # its length is checked on reading
    try:
        onnx.checker.check_tensor(tensor.raw)
    except Exception as error:  # ValidationError and what a field can lead to
        raise NormswapError(
            f"its tensor '{plain(name)}' is damaged ({plain(first_line(error))})"
        ) from error


@cache
def _schema(op: str, domain: str, version: int) -> Any:
    """The operator as ``version`` declares it, else (some files use an operator before its time) as
    the newest version does; None for one that onnx does not have."""
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        pass
    try:
        return onnx.defs.get_schema(op, domain=domain)
    except onnx.defs.SchemaError:
        return None


@cache
def _attribute_types() -> dict[tuple[str, str], dict[str, set[str]]]:
    """The types that an operator's attributes have had, by domain, operator and attribute: files
    keep attributes of older versions, and the view reads them where they are."""
    types: dict[tuple[str, str], dict[str, set[str]]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known = types.setdefault((schema.domain, schema.name), {})
        for name, declared in schema.attributes.items():
            known.setdefault(name, set()).add(declared.type.name)
    return types


def is_declared(node: ir.Node, attribute: str) -> bool:
    """Whether the operator has, or once had, such an attribute. ONNX Runtime ignores others."""
    domain = "" if node.domain in DOMAINS else node.domain
    types = _attribute_types().get((domain, node.op_type))
    return types is None or attribute in types


def _called(node: ir.Node) -> str:
    written = next((value.name for value in node.outputs if value.name), "")
    return f"its {plain(node.op_type)} '{plain(node.name or written)}'"


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} or more" if most > 1 << 16 else f"{least} to {most}"
