"""What ``normswap inspect`` tells of a model, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normswap.locate import locate
from normswap.locate.site import Rejection, Site
from normswap.model import Model
from normswap.report.cost import statistics_computed

SCHEMA = "normswap.inspection/1"


@dataclass(frozen=True)
class InspectedSite:
    """A site, the shape of its input and the statistics it computes, at the example's sizes."""

    site: Site
    input_shape: tuple[int, ...] | None
    statistics: int | None


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

    def to_json(self) -> dict[str, Any]:
        """Keys: ``schema``, then the fields of this class; a site's are those of
        ``Site.to_json``, ``input_shape`` and ``statistics``.
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "path": self.path,
            "kind": self.kind,
            "examples": {name: list(shape) for name, shape in self.examples.items()},
            "sites": [
                {
                    **found.site.to_json(),
                    "input_shape": None if found.input_shape is None else list(found.input_shape),
                    "statistics": found.statistics,
                }
                for found in self.sites
            ],
            "rejected": [{"where": r.where, "reason": r.reason} for r in self.rejected],
        }


def inspection(model: Model) -> Inspection:
    """Locates the norms of ``model`` and counts what they compute."""
    graph = model.graph
    location = locate(graph)
    return Inspection(
        model=model.name,
        path=None if model.path is None else str(model.path),
        kind=model.kind,
        examples={name: tuple(array.shape) for name, array in model.examples.items()},
        sites=[
            InspectedSite(s, graph.value(s.input).shape, statistics_computed(graph, s))
            for s in location.sites
        ],
        rejected=list(location.rejected),
    )
