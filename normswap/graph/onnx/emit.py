"""Writing an operator into an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from normswap.graph.graph import Node, Value
from normswap.graph.onnx.nodes import scoped_name
from normswap.graph.operators import operator

_NOT_COPIED = ("pkg.torch.onnx.stack_trace",)  # metadata that is not true of a new node


def new_node(
    op: str,
    opset: int,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    name: str,
    like: Node | None,
) -> ir.Node:
    """A node that is in no graph yet, with the metadata of ``like``; its outputs have no names.

    Raises ValueError for an operator that cannot be written, or not in this opset.
    """
    known = operator(op)
    if not known.writable:
        raise ValueError(f"cannot write the operator {op} into an ONNX graph")
    if opset < known.opset:
        raise ValueError(f"{op} needs opset {known.opset}")
    written = {k: v for k, v in attributes.items() if not (k == "training_mode" and v == 0)}
    if op == "Cast":
        written["to"] = int(ir.DataType.from_numpy(attributes["to"]))
    node = ir.node(
        op,
        inputs,
        written,
        domain=known.domain,
        num_outputs=4 if known.norm_with_sum else 1,  # normalised, mean, deviation, sum
        name=scoped_name(like.scope if like else "", name, op),
    )
    if like is not None:
        source = cast(ir.Node, like.raw).metadata_props
        node.metadata_props.update({k: v for k, v in source.items() if k not in _NOT_COPIED})
    return node


def place(graph: ir.Graph, node: ir.Node, inputs: Iterable[ir.Value | None]) -> None:
    """Puts a node into the graph behind the last producer of its inputs, or first."""
    producers = {p for v in inputs if v is not None and (p := v.producer()) is not None}
    if not producers:
        graph.insert_before(next(iter(graph)), node)
    elif len(producers) == 1:
        graph.insert_after(producers.pop(), node)
    else:
        order = {n: i for i, n in enumerate(graph)}
        graph.insert_after(max(producers, key=order.__getitem__), node)


def shape_after(
    op: str, inputs: Sequence[Value], attributes: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """The shape of the first output; None if unknown."""
    shape = inputs[0].shape
    if shape is None:
        return None
    if op == "Transpose":
        return tuple(shape[axis] for axis in attributes["perm"])
    if operator(op).product == "convolution":  # with a kernel of size 1, as it is written
        return (shape[0], cast(tuple[int, ...], inputs[1].shape)[0], *shape[2:])
    if operator(op).product:
        return (*shape[:-1], cast(tuple[int, ...], inputs[1].shape)[1])
    if op == "Shape":
        return (len(shape),)
    if op == "Reshape":
        return _reshaped(shape, inputs, attributes)
    if op == "Pad":
        before, after = np.split(np.array(attributes["pads"]), 2)
        return tuple(int(size) for size in shape + before + after)
    if op == "Slice":
        taken = zip(attributes["axes"], attributes["starts"], attributes["ends"], strict=True)
        sizes = dict(enumerate(shape)) | {axis: end - start for axis, start, end in taken}
        return tuple(sizes.values())
    if "keepdims" in attributes:  # of a reduction
        axes = attributes["axes"]
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if operator(op).combines_two:
        other = inputs[1].shape
        return None if other is None else tuple(np.broadcast_shapes(shape, other))
    return shape


def _reshaped(
    shape: tuple[int, ...], inputs: Sequence[Value], attributes: Mapping[str, Any]
) -> tuple[int, ...] | None:
    if "shape" not in attributes:  # that of another value
        sizes = inputs[1].producer
        return sizes.data_input().shape if sizes is not None else None
    wanted = attributes["shape"]
    rest = math.prod(size for size in wanted if size > 0)
    return tuple(math.prod(shape) // rest if size < 0 else size for size in wanted)
