"""What a norm costs at inference: how many statistics it computes from each input."""

from __future__ import annotations

import math

from normswap.graph.graph import Graph
from normswap.locate.site import Site

# A mean and a variance, or a mean square. A BatchNorm's are constants.
_PER_ROW = {"layer_norm": 2, "group_norm": 2, "instance_norm": 2, "rms_norm": 1, "batch_norm": 0}


def statistics_computed(graph: Graph, site: Site) -> int | None:
    """How many statistics a norm computes at the example inputs' sizes; None for unknown sizes.

    A LayerNorm: a mean and a variance for each row that it normalises.
    """
    per_row = _PER_ROW[site.kind]
    if not per_row:
        return 0
    rows = _rows(graph, site)
    return None if rows is None else per_row * rows


def _rows(graph: Graph, site: Site) -> int | None:
    shape = graph.value(site.input).shape
    if shape is None:
        return None
    if site.kind == "group_norm":
        producer = graph.value(site.output).producer
        groups = producer.attributes.get("num_groups") if producer is not None else None
        return None if groups is None else shape[0] * int(groups)
    return math.prod(size for axis, size in enumerate(shape) if axis not in site.axes)
