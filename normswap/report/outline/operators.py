"""What one operator does to the data of a tower, if it is worth a step of the outline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from normswap.graph.graph import Node, Value
from normswap.graph.operators import operator
from normswap.report.outline.flow import Flow, Joint, Vertex, is_embedding
from normswap.report.outline.items import Step

_IMAGE_RANK = 4
_GENERATED = re.compile(r".*(::|_\d+$|^\W)|^val")  # names that exporters make up


def step_of(flow: Flow, vertex: Vertex) -> Step | None:
    """The step that ``vertex`` is by itself; None where it only moves or rescales data."""
    if isinstance(vertex, Joint):
        return None
    if vertex in flow.foreign:
        return Step("link", value=key(vertex))
    if isinstance(vertex, Value):
        return Step("input", vertex.name, _sizes(vertex), value=vertex.name)
    site = flow.sites.get(vertex)
    if site is not None:
        return Step("norm", site.name, site=site, value=key(vertex))
    reader = _reader(flow, vertex)
    return reader(flow, vertex) if reader is not None else None


def key(vertex: Vertex) -> str:
    """The name of the value that a vertex computes (the last of those of a joint)."""
    if isinstance(vertex, Joint):
        return key(vertex.reads[-1]) if vertex.reads else ""
    return vertex.name if isinstance(vertex, Value) else vertex.output.name


def activation_name(op: str) -> str:
    """What people call an activation operator, of whatever domain; '' for any other."""
    short = op.rpartition(".")[2] if not op.startswith("aten.") else op
    return operator(short).activation


def moves(flow: Flow, vertex: Vertex) -> bool:
    """Whether the vertex hands on one vertex's data, at most moved, copied or rounded."""
    return (
        isinstance(vertex, Node)
        and vertex not in flow.sites
        and vertex.operator.move != ""
        and len(flow.reads(vertex)) == 1
        and step_of(flow, vertex) is None
    )


_Reader = Callable[[Flow, Node], Step | None]


def _reader(flow: Flow, node: Node) -> _Reader | None:
    if is_embedding(node):
        return _token_embedding
    facts = node.operator
    if facts.product == "matrix":
        return _product
    if facts.product == "convolution":
        return _convolution
    if facts.move in ("gather", "slice"):
        return _taken
    if facts.move == "concat":
        return _tokens
    if facts.arithmetic:
        return _arithmetic
    if facts.move:
        return None
    if facts.pool:
        return _pool
    if activation_name(node.op):
        return _activation
    return _attention if facts.attention else _operator


def _token_embedding(flow: Flow, node: Node) -> Step:
    table = node.data_input()
    detail = _times(*(table.shape or ()))
    return Step("token_embedding", _owner(node, table), detail, value=node.output.name)


def _product(flow: Flow, node: Node) -> Step:
    weight = _weight(flow, node)
    value, name = node.output.name, _owner(node, weight)
    if weight is None:
        return Step("operator", name, "product of matrices", value=value)
    if weight.rank != 2:
        return Step("operator", name, "product of matrices", value=value)
    kind = "patch_embedding" if _reads_image(flow, node) else "linear"
    return Step(kind, name, _linear_sizes(node, weight), value=value)


def _convolution(flow: Flow, node: Node) -> Step:
    weight, value = node.data_input(1), node.output.name
    name, shape = _owner(node, weight), weight.shape or ()
    before, after = node.data_input().shape, node.output.shape
    if len(shape) < 3 or before is None or after is None:
        return Step("convolution", name, value=value)
    kernel = shape[2:]
    depthwise = "depthwise " if shape[1] == 1 < before[1] else ""
    sizes = _to(before[1], after[1])
    detail = f"{sizes}, {depthwise}{_times(*kernel)}"
    image = _reads_image(flow, node)
    fits = tuple(size // k for size, k in zip(before[2:], kernel, strict=True)) == after[2:]
    if image and fits and max(kernel) > 1:
        return Step("patch_embedding", name, detail, value=value)
    pointwise = max(kernel) == 1 and shape[1] == before[1]
    if pointwise and not image:
        return Step("linear", name, sizes, value=value)
    return Step("convolution", name, detail, value=value)


def _taken(flow: Flow, node: Node) -> Step | None:
    """One token out of many, or None where more than one is kept."""
    before, after = node.data_input(), node.output
    if before.shape is None or after.shape is None:
        return None
    if node.operator.move == "slice":
        pairs = zip(before.shape, after.shape, strict=True)
        one = sum(a != b for a, b in pairs) == 1 and any(
            b == 1 != a for a, b in zip(before.shape, after.shape, strict=True)
        )
        starts = node.attributes.get("starts")
        where = starts[0] if starts else None
    else:
        index = node.attributes.get("index", flow.graph.scalar(node.input(1)))
        where = None if node.op == "GatherND" or index is None else int(index)
        fewer = math.prod(after.shape) < math.prod(before.shape)
        one = len(after.shape) < len(before.shape) or (where is None and fewer)
    if not one or before.rank == after.rank == 1:
        return None
    detail = f"token {where}" if where is not None else "token at a computed position"
    return Step("pool", "", "last token" if where == -1 else detail, value=after.name)


def _tokens(flow: Flow, node: Node) -> Step | None:
    """A class token or the like that joins the others."""
    members = [v for v in node.inputs if v is not None and _is_member(flow, v)]
    others = [v for v in node.inputs if v is not None and not _is_member(flow, v)]
    sizes = [v.shape for v in members]
    after, axis = node.output.shape, node.attributes.get("axis")
    if not others or None in sizes or after is None or axis in (None, 0, len(after) - 1):
        return None
    added = after[axis] - sum(shape[axis] for shape in sizes if shape is not None)
    detail = f"{added} of them" if added > 1 else ""
    return Step("tokens", _constant_name(others[0]), detail, value=node.output.name)


def _arithmetic(flow: Flow, node: Node) -> Step | None:
    """Positions are added as a matrix, a LayerScale is multiplied as a vector."""
    others = [v for v in node.inputs if v is not None and not _is_member(flow, v)]
    if len(flow.reads(node)) != 1 or len(others) != 1 or others[0].shape is None:
        return None
    large = [size for size in others[0].shape if size > 1]
    if node.op == "Add" and len(large) > 1:
        name = _constant_name(others[0])
        if _is_one_row(flow, others[0]):  # of a table of token types
            return Step("operator", name, "the same for every token", value=node.output.name)
        return Step("positions", name, value=node.output.name)
    if node.op == "Mul" and len(large) == 1 and others[0].is_constant:
        return Step("scale", _owner(node, others[0]), value=node.output.name)
    return None


def _is_one_row(flow: Flow, value: Value) -> bool:
    """Whether the value is one row of a table, again and again."""
    node = value.origin.producer
    if node is None or node.op != "Gather" or not node.data_input().is_constant:
        return False
    index = node.data_input(1).origin
    while index.producer is not None and index.producer.op == "GatherElements":
        index = index.producer.data_input().origin
    rows = flow.graph.constant(index)
    return rows is not None and rows.size > 1 and bool((rows == rows.reshape(-1)[0]).all())


def _pool(flow: Flow, node: Node) -> Step:
    return Step("pool", node.scope, node.operator.pool, value=node.output.name)


def _activation(flow: Flow, node: Node) -> Step:
    return Step("activation", node.scope, activation_name(node.op), value=node.output.name)


def _attention(flow: Flow, node: Node) -> Step:
    return Step("attention", node.scope, heads(node), value=node.output.name)


def _operator(flow: Flow, node: Node) -> Step:
    return Step("operator", node.scope, short_name(node.op), value=node.output.name)


def short_name(op: str) -> str:
    """``LayerNorm`` for ``com.microsoft.LayerNorm``, ``roll`` for ``aten.roll.default``."""
    parts = op.split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]


def heads(node: Node) -> str:
    """How many heads an attention has, as far as the operator tells."""
    count = node.attributes.get("q_num_heads", node.attributes.get("num_heads"))
    shape = node.data_input().shape
    if count is None and shape is not None and len(shape) == _IMAGE_RANK:
        count = shape[1]
    return "" if count is None else f"{count} head{'s' if count > 1 else ''}"


def _weight(flow: Flow, node: Node) -> Value | None:
    """The operand that is no data."""
    operands = [v for v in node.inputs[:2] if v is not None]
    others = [v for v in operands if not _is_member(flow, v)]
    return others[0] if len(others) == 1 else None


def _is_member(flow: Flow, value: Value) -> bool:
    return (value.producer or value) in flow


def _linear_sizes(node: Node, weight: Value) -> str:
    shape = weight.shape or ()
    if len(shape) != 2:
        return ""
    transposed = node.op == "Linear" or (node.op == "Gemm" and node.attributes.get("transB"))
    swapped = node.op == "MatMul" and node.data_input(0) is weight
    return _to(*(shape[::-1] if transposed or swapped else shape))


def _reads_image(flow: Flow, node: Node) -> bool:
    """Whether nothing but moves and plain arithmetic lies between an image and the operator."""
    reads = flow.reads(node)
    while len(reads) == 1 and isinstance(reads[0], Node):
        vertex = reads[0]
        plain = vertex.operator.move or vertex.operator.arithmetic
        if not plain or vertex in flow.sites or vertex in flow.foreign:
            return False
        reads = flow.reads(vertex)
    source = reads[0] if len(reads) == 1 else None
    return isinstance(source, Value) and source.rank == _IMAGE_RANK


def _owner(node: Node, weight: Value | None) -> str:
    """The module of an operator with a weight, or the weight's own name if that says more."""
    name = "" if weight is None else _constant_name(weight).removesuffix(".weight")
    return name if name.startswith(node.scope) else node.scope


def _constant_name(value: Value) -> str:
    """The name of the first constant behind ``value`` that someone named, or ''."""
    pending, seen = [value], set[Value]()
    while pending:
        found = pending.pop(0)
        if found in seen:
            continue
        seen.add(found)
        if found.producer is None:
            if found.is_constant and found.shape and not _GENERATED.match(found.name):
                return found.name
        elif not found.producer.operator.reads_sizes_only:
            pending.extend(v for v in found.producer.inputs if v is not None)
    return ""


def _sizes(value: Value) -> str:
    return _times(*value.shape) if value.shape is not None else ""


def _times(*sizes: int) -> str:
    return "x".join(str(size) for size in sizes)


def _to(*sizes: int) -> str:
    return " to ".join(str(size) for size in sizes)
