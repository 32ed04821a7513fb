"""What reads a value with its channels last, carried over to the image with its channels first.

Behind a norm of a ConvNeXt stand products with constant matrices and functions of each element, up
to the Transpose that brings the channels back to axis 1. All of it can be computed on the image: a
product is a convolution with a kernel of size 1, a constant per channel gets axes behind it.
"""

from __future__ import annotations

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Node, Value
from normswap.graph.linear import Linear, linear_at

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The permutations from [N, C, H, W] to [N, H, W, C], and back."""


def carry_over(graph: Graph, last: Value, image: Value) -> bool:
    """Lets all that reads ``last`` [N, H, W, C] read ``image`` [N, C, H, W], which is the same.

    Either all of it, up to transposes that bring the channels first, or nothing: where something
    else reads on, or the graph cannot hold a convolution, False is returned and nothing is changed.
    """
    steps = _steps(graph, last)
    if not steps:
        return False
    try:
        graph.require("Conv")
    except NormswapError:
        return False
    images = {last: image}
    for step in steps:
        if isinstance(step, Linear):
            images[step.output] = _convolution(graph, step, images[step.input])
        elif step.op == "Transpose":
            graph.replace_uses(step.output, images[step.data_input()])
        else:
            images[step.output] = _of_elements(graph, step, images)
    return True


def _steps(graph: Graph, last: Value) -> list[Node | Linear]:
    """All that reads ``last``, in order of execution; none where some of it cannot be carried
    over."""
    found: list[Node | Linear] = []
    known, inside = {last}, set[Node]()
    for node in graph.nodes:
        dynamic = node.dynamic_inputs()
        if node in inside or not known.intersection(dynamic):
            continue
        if not known.issuperset(dynamic) or known.intersection(graph.outputs):
            return []
        if node.attributes.get("perm") == CHANNELS_FIRST:
            found.append(node)
            continue
        linear = linear_at(graph, node)
        if linear is not None and linear.axis == linear.output_axis == 3:
            inside |= {n for n in (linear.product, linear.adder) if n is not None}
            found.append(linear)
            known.add(linear.output)
        elif _can_be_written(graph, node):
            found.append(node)
            known.add(node.output)
        else:
            return []
    return [] if known.intersection(graph.outputs) else found


def _can_be_written(graph: Graph, node: Node) -> bool:
    """Whether a node computes element by element, with constants per channel or of one element."""
    if not (node.operator.is_of_elements and node.operator.writable) or node.output.rank != 4:
        return False
    channels = (node.output.shape or ())[-1]
    constants = [v for v in node.inputs if v is not None and v.is_constant]
    return all(graph.constant(v) is not None and _is_plain(v, channels) for v in constants)


def _is_plain(constant: Value, channels: int) -> bool:
    shape = constant.shape or ()
    return len(shape) <= 4 and set(shape[:-1]) <= {1} and (not shape or shape[-1] in (1, channels))


def _convolution(graph: Graph, linear: Linear, x: Value) -> Value:
    name, like = linear.output.name, linear.product
    dtype = x.dtype or np.dtype(np.float32)
    weight = np.asarray(linear.weight)[:, :, None, None].astype(dtype)
    inputs = [x, graph.add_constant(weight, f"{name}.kernel")]
    if linear.bias is not None:
        bias = np.asarray(linear.bias).reshape(-1).astype(dtype)
        inputs.append(graph.add_constant(bias, f"{name}.bias"))
    return graph.insert("Conv", inputs, {"group": 1}, name=f"{name}.image", like=like)


def _of_elements(graph: Graph, node: Node, images: dict[Value, Value]) -> Value:
    inputs: list[Value | None] = []
    for value in node.inputs:
        if value is None or not value.is_constant:
            inputs.append(None if value is None else images[value])
            continue
        array = graph.constant(value)
        assert array is not None  # _can_be_written has read it
        if array.ndim:
            array = array.reshape(-1, 1, 1)
        inputs.append(graph.add_constant(array, f"{value.name}.image"))
    name = f"{node.output.name}.image"
    return graph.insert(node.op, inputs, node.attributes, name=name, like=node)
