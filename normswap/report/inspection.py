"""The result of ``normswap inspect`` as plain values, and what a norm costs at inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normswap.model import Model
from normswap.norms.site import Rejection, Site
from normswap.report.input_shapes import shapes_at, sized

SCHEMA = "normswap.inspection/1"
# A mean and a variance, or a mean square. A BatchNorm's are constants.
_PER_ROW = {"layer_norm": 2, "group_norm": 2, "instance_norm": 2, "rms_norm": 1, "batch_norm": 0}
_FOLDED = 0  # statistics of a BatchNorm that took a norm's place and was folded into the weights


@dataclass(frozen=True)
class InspectedSite:
    """A site, the shape of its input and the statistics it computes, at the inspection's sizes.

    ``statistics_folded_batch_norm``: those left where a BatchNorm took its place and was folded.
    """

    site: Site
    input_shape: tuple[int, ...] | None
    statistics: int | None
    statistics_folded_batch_norm: int = _FOLDED


@dataclass(frozen=True)
class Inspection:
    """The norms of a model. ``examples``: the shapes that all sizes refer to, by input name."""

    model: str
    path: str | None
    kind: str
    examples: dict[str, tuple[int, ...]]
    sites: list[InspectedSite]
    rejected: list[Rejection]

    @property
    def statistics(self) -> int:
        """Those of all sites whose sizes are known."""
        return sum(found.statistics or 0 for found in self.sites)

    @property
    def statistics_folded_batch_norm(self) -> int:
        """Those left if a folded BatchNorm took the place of every norm."""
        return sum(found.statistics_folded_batch_norm for found in self.sites)

    def to_json(self) -> dict[str, Any]:
        """Keys: ``schema``, then the fields and totals of this class; a site's are those of
        ``Site.to_json`` and of ``InspectedSite``.
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "path": self.path,
            "kind": self.kind,
            "examples": {name: list(shape) for name, shape in self.examples.items()},
            "statistics": self.statistics,
            "statistics_folded_batch_norm": self.statistics_folded_batch_norm,
            "sites": [
                {
                    **found.site.to_json(),
                    "input_shape": None if found.input_shape is None else list(found.input_shape),
                    "statistics": found.statistics,
                    "statistics_folded_batch_norm": found.statistics_folded_batch_norm,
                }
                for found in self.sites
            ],
            "rejected": [vars(rejection) for rejection in self.rejected],
        }


def inspection(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Inspection:
    """The norms of ``model`` and what they compute.

    ``input_shapes``: sizes of inputs, by name; inputs without are as the example, or share the
    sizes that have a name with those that are given. Without any, all sizes are the example's.
    Raises NormswapError for a name that is no input, and for sizes that the model does not take.

    Example: ``inspection(model, {"pixel_values": (8, 3, 224, 224)}).statistics``.
    """
    sites = model.sites
    arrays = sized(model, input_shapes or {})
    inputs = [model.graph.value(site.input) for site in sites]
    shapes = shapes_at(model, inputs, arrays) if input_shapes else [v.shape for v in inputs]
    return Inspection(
        model=model.name,
        path=None if model.path is None else str(model.path),
        kind=model.kind,
        examples={name: tuple(array.shape) for name, array in arrays.items()},
        sites=[
            InspectedSite(site, shape, statistics_computed(site, shape))
            for site, shape in zip(sites, shapes, strict=True)
        ],
        rejected=list(model.location.rejected),
    )


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
