"""Whether a norm in half precision works at all on ordinary values."""

from __future__ import annotations

import numpy as np

from normswap.graph.graph import Graph, Value
from normswap.norms.evaluation import RegionRunner, probe_shapes
from normswap.norms.regions import Region

_LARGEST = float(np.finfo(np.float16).max)


def overflowing_in_half(graph: Graph, region: Region, exit_value: Value) -> str:
    """The name of a float16 value before ``exit_value`` that values of unit scale make too large
    for half precision; '' if there is none.
    """
    nodes = graph.ancestors([exit_value], stop=[region.entry, *region.sizes])
    values = [v for n in nodes for v in n.outputs if v.dtype == np.float16 and not v.is_constant]
    if not values:
        return ""
    run = RegionRunner(graph, Region(region.entry, tuple(values), tuple(nodes), region.sizes))
    for shape in probe_shapes(region):
        largest = run.largest(np.random.default_rng(0).standard_normal((1, *shape)))
        if largest is not None:
            over = (v for v, size in zip(values, largest, strict=True) if size > _LARGEST)
            return next((v.name for v in over), "")
    return ""
