"""Raising the version of the operator set that an ONNX model is written in.

It is a rewrite like any other: each operator that is defined anew is written as the rules have it
(``opset_rules.py``), and the old and the new form of it are run on the same numbers, in the shapes
that it has in the model. What differs, or is rewritten by a rule and cannot be run, is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from normswap.errors import NormswapError, plain
from normswap.graph.graph import Array, is_floating
from normswap.graph.onnx.evaluate import runtime_session
from normswap.graph.onnx.nodes import DOMAINS, constant_tensor, nested_operators
from normswap.graph.onnx.opset_rules import RULES, Draft, Unraisable, by_schema
from normswap.graph.onnx.shapes import Types
from normswap.graph.operators import operator

_OLDEST = 7  # before, operators broadcast in another way
# Elements that a node may read to be run: one that is written as it was, and one by a rule.
_LARGEST, _LARGEST_BY_RULE = 1 << 18, 1 << 24
_ULPS = 8  # by which sums in another order may differ


def opset_of(model: ir.Model) -> int:
    """The version of the default operator set that the model is written in."""
    return next((v for d, v in model.opset_imports.items() if d in DOMAINS), 1)


def raise_opset(model: ir.Model, version: int, types: Types) -> bool:
    """Writes the model in ``version``, in place; returns whether nodes have changed.

    ``types``: sizes and dtypes of values by name. Values keep their names, types and recorded
    shapes. Raises NormswapError, the model being as it was, for an operator that cannot be raised:
    the message names it and says why.
    """
    before = opset_of(model)
    if before < _OLDEST:
        raise NormswapError(f"opset {before} is too old to be raised")
    raised: list[Draft] = []
    proven = set[object]()
    for node in model.graph.all_nodes():
        if node.domain not in DOMAINS:
            continue
        try:
            draft = _drafted(node, before, version, types)
            if draft is None:
                continue
            if not _is_as_before(draft):
                _complete(draft)
                raised.append(draft)
            kind = _kind(node, types)
            if kind not in proven:
                _hold(draft, draft.nodes or [node], before, version, types)
                proven.add(kind)
        except Unraisable as refusal:
            for draft in raised:
                _discard(draft.nodes)
            name = plain(node.outputs[0].name)
            raise NormswapError(
                f"{node.op_type} ({name}) cannot be raised from opset {before} to {version}: "
                f"{refusal}"
            ) from refusal
    taken = _names(model.graph) if raised else set()
    for draft in raised:
        _put(draft, taken)
    for domain in DOMAINS:
        model.opset_imports.pop(domain, None)
    model.opset_imports[""] = version
    return bool(raised)


def _discard(nodes: Sequence[ir.Node]) -> None:
    """Lets nodes that come into no graph read nothing."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _drafted(node: ir.Node, before: int, version: int, types: Types) -> Draft | None:
    """The node as the rules write it; None where its operator is defined as it was."""
    try:
        old = onnx.defs.get_schema(node.op_type, before)
        new = onnx.defs.get_schema(node.op_type, version)
    except onnx.defs.SchemaError as error:
        raise Unraisable("no version of the operator set has this operator") from error
    if old.since_version == new.since_version:
        return None
    rules = [(n, rule) for n, rule in RULES.get(node.op_type, ()) if before < n <= version]
    if new.deprecated:
        if not rules:
            raise Unraisable("it is gone")
        new = onnx.defs.get_schema(node.op_type, rules[0][0] - 1)
    draft = Draft.of(node, types)
    by_schema(draft, old, new)
    for _, rule in rules:
        held = draft.state()
        rule(draft)
        draft.by_rule = draft.by_rule or draft.state() != held
    return draft


def _is_as_before(draft: Draft) -> bool:
    return draft.state() == Draft.of(draft.node, draft.types).state()


def _complete(draft: Draft) -> None:
    """Makes the nodes that take the place of the draft's, the last of which has its outputs."""
    node = draft.node
    main = ir.node(
        draft.op,
        draft.inputs,
        draft.attributes,
        num_outputs=len(node.outputs),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    for old, own in zip(node.outputs, main.outputs, strict=True):
        own.name = f"{old.name}.raised" if draft.wrap is not None else old.name
    draft.nodes.append(main)
    if draft.wrap is not None:
        draft.wrap(main.outputs[0]).name = node.outputs[0].name


def _names(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    return {str(value.name) for value in values}


def _unique(name: str, taken: set[str]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    unique = next(candidate for candidate in names if candidate not in taken)
    taken.add(unique)
    return unique


def _put(draft: Draft, taken: set[str]) -> None:
    """Puts the new nodes in the place of the old one."""
    node, new = draft.node, draft.nodes
    for value in [*draft.constants, *(value for made in new[:-1] for value in made.outputs)]:
        value.name = _unique(str(value.name), taken)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    root: Any = graph
    for value in draft.constants:
        root.register_initializer(value)
    graph.insert_before(node, new)
    for old, own in zip(node.outputs, new[-1].outputs, strict=True):
        name, old.name = old.name, None
        own.name, own.type, own.shape, own.doc_string = name, old.type, old.shape, old.doc_string
        own.metadata_props.update(old.metadata_props)
        ir.convenience.replace_all_uses_with(old, own, replace_graph_outputs=True)
    graph.remove(node, safe=True)


# -- the old and the new form of a node ------------------------------------------------------------


def _kind(node: ir.Node, types: Types) -> object:
    """What the proof for a node depends on, constants apart: equal for nodes alike."""
    attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
    reads = [None if v is None else (types.get(str(v.name)), _constant(v)) for v in node.inputs]
    return node.op_type, str(attributes), str(reads), len(node.outputs)


def _constant(value: ir.Value) -> object:
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    small = tensor.size <= 64 and tensor.dtype != ir.DataType.STRING
    return tensor.numpy().tolist() if small else (tensor.dtype, tuple(tensor.shape.numpy()))


def _hold(draft: Draft, new: Sequence[ir.Node], before: int, version: int, types: Types) -> None:
    """Raises Unraisable where the new form differs from the old one, or is one by a rule and
    cannot be run."""
    try:
        old_results, results = _both(draft, new, before, version, types)
    except _NotRun as reason:
        if draft.by_rule:
            raise Unraisable(f"it could not be compared with its new form ({reason})") from reason
        return
    for old, own in zip(old_results, results, strict=True):
        if not _agree(old, own):
            raise Unraisable("its new form yields something else")


class _NotRun(Exception):
    """The two forms of a node could not be run; ``args[0]`` says why."""


def _both(
    draft: Draft, new: Sequence[ir.Node], before: int, version: int, types: Types
) -> tuple[list[Array], list[Array]]:
    node = draft.node
    if operator(node.op_type).random or nested_operators(node):
        raise _NotRun("it is random or runs others")
    held: dict[str, ir.TensorProtocol] = {}
    fed: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for value in node.inputs:
        if value is None:
            continue
        tensor = constant_tensor(value)
        if tensor is not None:
            held[str(value.name)] = tensor
            continue
        shape, dtype = types.get(str(value.name), (None, None))
        if shape is None or dtype is None:
            raise _NotRun("a shape is unknown")
        fed[str(value.name)] = shape, dtype
    elements = sum(math.prod(shape) for shape, _ in fed.values())
    elements += sum(tensor.size for tensor in held.values())
    if elements > (_LARGEST_BY_RULE if draft.by_rule else _LARGEST):
        raise _NotRun("it is too large")
    added = {str(v.name): v.const_value for v in draft.constants if v.const_value is not None}
    for largest_index in (1, 0):  # 0 is an index into anything
        numbers = {name: _numbers(*known, largest_index) for name, known in fed.items()}
        try:
            first = _run([node], before, numbers, held, node)
        except Exception:  # the runtime's exceptions share no base class
            continue
        try:
            return first, _run(new, version, numbers, held | added, node)
        except Exception as error:
            raise _NotRun("the runtime refuses its new form") from error
    raise _NotRun("the runtime refuses it")


def _numbers(shape: Sequence[int], dtype: np.dtype[Any], largest_index: int) -> Array:
    """Numbers to tell two forms apart with: of other sizes and signs, some of them equal; small
    integers."""
    rng = np.random.default_rng(0)
    if is_floating(dtype):
        sizes = rng.choice([0.0, 1.0, 4.0], shape)
        return np.asarray(rng.standard_normal(shape) * sizes).astype(dtype)
    return np.asarray(rng.integers(0, largest_index + 1, shape)).astype(dtype)


def _run(
    nodes: Sequence[ir.Node],
    opset: int,
    fed: dict[str, Array],
    held: dict[str, ir.TensorProtocol],
    whole: ir.Node,
) -> list[Array]:
    outputs = [value for value in whole.outputs if value.name]
    graph = onnx.GraphProto(name="node")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    for proto in graph.node:
        proto.domain = ""
    for name, array in fed.items():
        kind = int(ir.DataType.from_numpy(array.dtype))
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    for name, tensor in held.items():
        own = ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), name=name, dtype=tensor.dtype))
        graph.initializer.append(own)
    graph.output.extend(onnx.ValueInfoProto(name=str(value.name)) for value in outputs)
    proto = onnx.ModelProto(graph=graph, ir_version=10)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    found: list[Array] = runtime_session(proto).run(None, fed)
    return found


def _agree(old: Array, new: Array) -> bool:
    old, new = np.asarray(old), np.asarray(new)
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not is_floating(old.dtype):
        return bool(np.array_equal(old, new))
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    slack = _ULPS * float(ml_dtypes.finfo(old.dtype).eps) * np.abs(a[finite]).max(initial=0)
    return bool(np.all(np.abs(a[finite] - b[finite]) <= slack))
