"""The outline of a model: what happens from its inputs to its outputs, tower by tower.

``items`` holds its values, ``operators`` and ``flow`` read the graph, ``regions`` divides the flow
into items, and ``grouping`` puts together what people see as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normswap.model import Model
from normswap.norms.site import Site
from normswap.norms.structure import towers
from normswap.report.outline.flow import Flow, Vertex
from normswap.report.outline.grouping import collapsed
from normswap.report.outline.items import Item, Outline, Step, Tower, steps
from normswap.report.outline.regions import Regions

_NAMES = ("image", "text", "", "both")  # towers that are read come before those that read them
_WORTH_SHOWING = ("norm", "linear", "attention", "mlp", "convolution", "patch_embedding")


def outline(model: Model) -> Outline:
    """The towers of a model, each from its stem to its head, with every norm in its place.

    All is decided from the graph's structure; names are labels.
    """
    belongs = towers(model.graph)
    anchors: dict[Vertex, str] = {}
    found = []
    for name in _NAMES:
        flow = Flow(model.graph, model.sites, belongs, name, model.output_names)
        tower = _tower(flow, anchors)
        if tower is not None:
            found.append(tower)
    named = [tower for tower in found if tower.name in ("image", "text")]
    head = "projection" if len(named) > 1 else "head"
    found = [replace(tower, items=_with_head(tower.items, head)) for tower in found]
    return Outline((*found, *_elsewhere(model.sites, found)))


def _tower(flow: Flow, anchors: dict[Vertex, str]) -> Tower | None:
    ends = flow.ends()
    if not ends:
        return None
    last = max(ends, key=lambda end: len(flow.between(flow.start, end)))
    regions = Regions(flow, anchors)
    items = collapsed(regions.chain(flow.start, last))
    sides = [regions.side(end) for end in ends if end is not last]
    sides = [replace(s, items=collapsed(s.items)) for s in sides if s.items or s.outputs]
    inner = [step.kind for step in steps([*items, *(i for s in sides for i in s.items)])]
    if flow.name != "both" and not any(kind in _WORTH_SHOWING for kind in inner):
        return None
    return Tower(flow.name, items, tuple(flow.outputs(last)), tuple(sides))


def _with_head(items: tuple[Item, ...], kind: str) -> tuple[Item, ...]:
    """The linear layers behind the last block are the head, or the projection of a CLIP."""
    blocks = (i for i, item in enumerate(items) if not isinstance(item, Step))
    last = max(blocks, default=-1)
    return tuple(
        replace(item, kind=kind)
        if index > last and isinstance(item, Step) and item.kind == "linear"
        else item
        for index, item in enumerate(items)
    )


def _elsewhere(sites: Sequence[Site], found: Sequence[Tower]) -> list[Tower]:
    """Norms that no input's data reaches on the way to an output, so that none is left out."""
    placed = set(Outline(tuple(found)).sites())
    left = [site for site in sites if site not in placed]
    items = tuple(Step("norm", site.name, site=site, value=site.output) for site in left)
    return [Tower("elsewhere", collapsed(items), ())] if items else []
