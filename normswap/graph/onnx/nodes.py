"""What the nodes and values of an ``onnx_ir`` graph hold: module paths, constants, subgraphs."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable, Iterator

import onnx_ir as ir

from normswap.graph.operators import operator

DOMAINS = ("", "ai.onnx")
"""The names of the default operator set."""


def module_scope(node: ir.Node) -> str:
    """The module path that torch's exporters record: in metadata (dynamo) or the node's name.

    Dynamo's is a list of nested paths that ends in the node's own name:
    ``['', 'blocks.0', 'blocks.0.norm1', 'layer_norm']``. TorchScript's is a path in which a
    container repeats its own: ``/blocks/blocks.0/norm1/LayerNormalization``. Both give
    ``blocks.0.norm1``.
    """
    recorded = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if recorded:
        try:
            scopes = ast.literal_eval(recorded)
        except (ValueError, SyntaxError):
            return ""
        return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    name = node.name or ""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1] if name.startswith("/") else []:
        if path and part.startswith(path[-1] + "."):
            path.pop()
        path.append(part)
    return ".".join(path)


def scoped_name(scope: str, value: str, op: str) -> str:
    """The name of a new node from which ``module_scope`` reads the module path ``scope``."""
    return f"/{scope}/{value.replace('/', '.')}.{op}" if scope else f"{value}/{op}"


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None if ``value`` is computed or fed."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "":
        return None
    held = node.attributes.get("value")
    if held is not None and held.type == ir.AttributeType.TENSOR and not held.is_ref():
        # As get_const_tensor does, whose check of the tensor's type is slow.
        tensor: ir.TensorProtocol = held.value
        tensor.name = value.name
        return tensor
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # sparse, or no value at all
        return None


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """The initializers, and the values that nodes compute from constants alone.

    The graph is as ``prepare`` leaves it.
    """
    constants = {v for v in graph.initializers.values() if v.const_value is not None}
    for node in graph:
        reads = [v for v in (*node.inputs, *captured_values(node)) if v is not None]
        fixed = not operator(node.op_type).random and not repeats_a_body(node)
        computed = bool(node.inputs) and fixed
        if node.outputs[0].const_value is not None or (computed and constants.issuperset(reads)):
            constants.update(node.outputs)
    return constants


def captured_values(node: ir.Node) -> list[ir.Value]:
    """The outer values that a node's subgraphs (of an If, a Loop, a Scan) read."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs(node):
        nodes = list(graph.all_nodes())
        bodies = [graph, *(body for n in nodes for body in subgraphs(n))]
        inner = {v for n in nodes for v in n.outputs}
        inner |= {v for body in bodies for v in (*body.inputs, *body.initializers.values())}
        reads = [v for n in nodes for v in n.inputs if v is not None]
        reads += [v for body in bodies for v in body.outputs]
        found.update(dict.fromkeys(v for v in reads if v not in inner))
    return list(found)


def replace_captured(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Lets a node's subgraphs read ``new`` where they read the outer value ``old``."""
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            for index, value in enumerate(inner.inputs):
                if value is old:
                    inner.replace_input_with(index, new)


def repeats_a_body(node: ir.Node) -> bool:
    """Whether a node, or one in its bodies, runs a body as often as its inputs say."""
    return any(operator(op).repeats for op in (node.op_type, *nested_operators(node)))


LOOP_SECONDS = 12.0
"""The most time that the thread of a run may work in which a loop goes on as long as the file
says: a small file is to be done with in 20 seconds."""


def work_of_this_thread() -> Callable[[], float]:
    """How many seconds the calling thread works from now on, to be asked by any thread; where the
    system does not tell, how many pass."""
    if not hasattr(time, "pthread_getcpuclockid"):
        begun = time.monotonic()
        return lambda: time.monotonic() - begun
    clock = time.pthread_getcpuclockid(threading.get_ident())
    start = time.clock_gettime(clock)
    return lambda: time.clock_gettime(clock) - start


def endless() -> str:
    """The error for a run that took longer."""
    return f"it did not end within {LOOP_SECONDS:.0f} s: a loop in it may go on for ever"


def nested_operators(node: ir.Node) -> set[str]:
    """The types of all operators in a node's subgraphs, and in the subgraphs of those."""
    return {inner.op_type for graph in subgraphs(node) for inner in graph.all_nodes()}


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
