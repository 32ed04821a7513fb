"""What a site is called: the module path, as far as the graph still knows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from normswap.graph.graph import Node, Value
from normswap.norms.site import Site

_PARAMETER_NAMES = ("weight", "bias", "gamma", "beta")


def site_name(nodes: Sequence[Node], constants: Iterable[Value | None]) -> str:
    """The owner of a parameter that only this norm reads, else the recorded scope, else a value.

    Exporters share equal parameters between modules, so one with several readers proves nothing.
    """
    for value in constants:
        if value is None or value.producer is not None or len(value.uses) != 1:
            continue
        owner, _, last = value.name.rpartition(".")
        if owner and last in _PARAMETER_NAMES:
            return owner
    return next((node.scope for node in nodes if node.scope), nodes[-1].output.name)


def unique_names(sites: Sequence[Site]) -> list[str]:
    """The sites' names, with '#2', '#3', ... behind a name that comes again."""
    seen: Counter[str] = Counter()
    names = []
    for site in sites:
        seen[site.name] += 1
        count = seen[site.name]
        names.append(site.name if count == 1 else f"{site.name}#{count}")
    return names
