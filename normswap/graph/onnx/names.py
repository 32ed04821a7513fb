"""Names in ONNX graphs: the module path that an exporter recorded, and names for all values."""

from __future__ import annotations

import ast

import onnx_ir as ir


def module_scope(node: ir.Node) -> str:
    """The module path that torch's exporters record: in metadata (dynamo) or the node's name.

    Dynamo's is a list of nested paths that ends in the node's own name:
    ``['', 'blocks.0', 'blocks.0.norm1', 'layer_norm']``. TorchScript's is a path in which a
    container repeats its own: ``/blocks/blocks.0/norm1/LayerNormalization``.
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
    """The name of a new node, which ``module_scope`` reads the module path ``scope`` from."""
    return f"/{scope}/{value.replace('/', '.')}.{op}" if scope else f"{value}/{op}"


def name_everything(graph: ir.Graph) -> None:
    """Names the values that are read but unnamed; values are known by name here."""
    taken = {v.name for n in graph for v in n.outputs} | {v.name for v in graph.inputs}
    count = 0
    for node in graph:
        for value in node.outputs:
            if not value.name and (value.uses() or value is node.outputs[0]):
                while f"value_{count}" in taken:
                    count += 1
                value.name = f"value_{count}"
                taken.add(value.name)
