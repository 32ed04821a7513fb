"""Calibration data in batches that a model takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site

_ELEMENTS = 16 * 3 * 224 * 224  # per batch, of all inputs together
_SMALLEST, _LARGEST = 16, 256


def calibration_batches(model: Model, sites: Sequence[Site], data: Data) -> list[dict[str, Array]]:
    """Feeds for what ``sites`` depend on; a model with a fixed batch gets whole ones only.

    Raises NormswapError if the data lacks an input that they depend on, or fills no batch.
    """
    graph = model.graph
    read = {v.name for v in graph.sources(graph.value(site.output) for site in sites)}
    needed = [spec for spec in model.inputs if spec.name in read]
    for spec in needed:
        if spec.name not in data.feeds:
            raise NormswapError(
                f"{model.name}: the calibration data lacks '{spec.name}', which the norms to be "
                f"swapped depend on; it holds {', '.join(data.feeds)}"
            )
    fixed = {spec.shape[0] for spec in needed if isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        raise NormswapError(
            f"{model.name}: cannot be calibrated, its inputs have several fixed batches: "
            f"{', '.join(map(str, sorted(fixed)))}"
        )
    elements = sum(math.prod(data.feeds[spec.name].shape[1:]) for spec in needed)
    size = next(iter(fixed), min(max(_ELEMENTS // max(elements, 1), _SMALLEST), _LARGEST))
    count = data.count - data.count % size if fixed else data.count
    if not count:
        raise NormswapError(
            f"{model.name}: takes batches of {size}, the calibration data holds {data.count}"
        )
    return list(
        Data({name: array[:count] for name, array in data.feeds.items()}, None).batches(size)
    )
