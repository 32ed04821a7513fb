"""What a norm costs at inference: how many statistics it computes from each input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normswap.norms.site import Site

# A mean and a variance, or a mean square. A BatchNorm's are constants.
_PER_ROW = {"layer_norm": 2, "group_norm": 2, "instance_norm": 2, "rms_norm": 1, "batch_norm": 0}
STATISTICS_FOLDED = 0  # by a BatchNorm in a norm's place that was folded into the weights


def statistics_computed(site: Site, shape: Sequence[int] | None) -> int | None:
    """How many statistics a norm computes from an input of ``shape``; None for an unknown shape.

    A LayerNorm: a mean and a variance for each row that it normalises.
    """
    per_row = _PER_ROW[site.kind]
    if not per_row:
        return 0
    if shape is None:
        return None
    if site.kind == "group_norm":
        return per_row * shape[0] * (site.groups or 1)
    return per_row * math.prod(size for axis, size in enumerate(shape) if axis not in site.axes)
