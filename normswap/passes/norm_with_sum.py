"""A norm together with the sum that it reads, as one of ONNX Runtime's own operators."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Graph, Node, Value
from normswap.norms.site import Site
from normswap.passes.norm_operator import parameter, working_dtype

OPERATORS = {
    "layer_norm": "SkipLayerNormalization",
    "rms_norm": "SkipSimplifiedLayerNormalization",
}


def sum_read_by(graph: Graph, site: Site) -> Node | None:
    """The Add whose sum the norm normalises, if one operator can compute both: of two values of
    one shape, rank 2 or 3, over the last axis, in one dtype that holds the parameters."""
    x, y = graph.value(site.input), graph.value(site.output)
    add = x.producer
    if site.kind not in OPERATORS or add is None or add.op != "Add" or x.shape is None:
        return None
    values = add.dynamic_inputs()
    alike = len(values) == 2 and all(v.shape == x.shape and v.dtype == x.dtype for v in values)
    last = site.axes == (len(x.shape) - 1,) and len(x.shape) in (2, 3)
    plain = site.bias is None or site.kind == "layer_norm"
    same = x.dtype == y.dtype == working_dtype(x, y, site)
    return add if alike and last and plain and same else None


def replace_norm_and_sum(graph: Graph, site: Site) -> tuple[Value, Value]:
    """One operator for the norm and for the sum of ``sum_read_by``; their new values."""
    x, old = graph.value(site.input), graph.value(site.output)
    add, dtype = x.producer, x.dtype
    assert add is not None  # sum_read_by has found it
    assert dtype is not None
    gamma = np.ones(site.normalized_shape) if site.weight is None else site.weight
    inputs: list[Value | None] = [*add.dynamic_inputs()]
    inputs.append(parameter(graph, site, gamma, f"{site.name}.weight", dtype))
    if site.bias is not None:
        inputs.append(parameter(graph, site, site.bias, f"{site.name}.bias", dtype))
    attributes = {"epsilon": site.epsilon}
    new = graph.insert(
        OPERATORS[site.kind], inputs, attributes, name=f"{site.name}.output", like=old.producer
    )
    assert new.producer is not None
    total = new.producer.outputs[3]
    graph.replace_uses(old, new)
    graph.replace_uses(x, total)
    return new, total
