"""The form of every norm of an ONNX graph that is the fastest one on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from normswap.errors import NormswapError
from normswap.graph.graph import Graph
from normswap.graph.onnx.graph import OnnxGraph
from normswap.lowering.measure import choose, described, measure
from normswap.lowering.targets import Runtime, runtime_of
from normswap.model import Progress
from normswap.norms.site import Site
from normswap.passes.base import ChosenForms, NormForms

_ORIGINAL = "the original"


@dataclass
class FastestForm:
    """A ``Chooser`` that measures the forms of norms in the runtime of ``target``.

    The kernels of a torch graph are chosen later, by ``lower``: there each norm takes its default.
    Raises NormswapError for a target that cannot be measured.
    """

    target: str | None
    progress: Progress | None = field(default=None, repr=False)

    def __call__(self, graph: Graph, sites: Sequence[Site], forms: NormForms) -> ChosenForms:
        if isinstance(graph, OnnxGraph):
            runtime = runtime_of(self.target or "generic")
            return fastest_forms(graph, sites, forms, runtime, self.progress)
        if self.target is not None:
            raise NormswapError("--tune: export the model to ONNX to measure it for a --target")
        return forms.defaults(sites)


def fastest_forms(
    graph: OnnxGraph,
    sites: Sequence[Site],
    forms: NormForms,
    runtime: Runtime,
    progress: Progress | None = None,
) -> ChosenForms:
    """Measures one norm of each sort, and takes what wins for all of its sort."""
    groups: dict[Hashable, list[Site]] = defaultdict(list)
    result = ChosenForms()
    for site in sites:
        candidates = forms.candidates(graph, site)
        if candidates:
            groups[norm_sort(graph, site, candidates)].append(site)
        else:
            result.skipped.append((site, f"no other form of it is known for {runtime.name}"))
    for number, group in enumerate(groups.values()):
        if progress:
            progress(number, len(groups), "measuring")
        _choose_for(graph, group, forms, runtime, result)
    if progress:
        progress(len(groups), len(groups), "measuring")
    return result


def norm_sort(graph: Graph, site: Site, candidates: Sequence[str]) -> Hashable:
    """What norms have in common that take the same time, in the same operators."""
    x, y = graph.value(site.input), graph.value(site.output)
    spelling = tuple(node.op for node in graph.ancestors([y], stop=[x]))
    affine = site.weight is None, site.bias is None
    return site.kind, site.axes, x.shape, x.dtype, y.dtype, affine, spelling, tuple(candidates)


def _choose_for(
    graph: OnnxGraph,
    group: Sequence[Site],
    forms: NormForms,
    runtime: Runtime,
    result: ChosenForms,
) -> None:
    """Adds the form for the norms of one sort, or why they stay as they are, to ``result``."""
    site = group[0]
    x = graph.value(site.input)
    reads, computes = forms.region(graph, site)
    protos = {_ORIGINAL: graph.extract(reads, computes)}
    for form in forms.candidates(graph, site):
        try:
            protos[form] = _written(graph, site, forms, form)
        except NormswapError as error:
            result.skipped += [(s, str(error)) for s in group]
            return
    shapes = [(tuple(v.shape or ()), v.dtype or np.dtype(np.float32)) for v in reads]
    measured = measure(runtime, protos, shapes, graph.slice(reads, computes, np.float64))
    default = forms.defaults([site]).forms.get(site, _ORIGINAL)
    best = choose(measured, default)
    why = described(measured, _ORIGINAL)
    size = "x".join(str(s) for s in x.shape or ())
    taken = best if best != _ORIGINAL else "left as they are"
    result.notes.append(
        f"{len(group)} norms of {size} {x.dtype} like '{site.name}': {taken}; {why}"
    )
    if best != _ORIGINAL:
        result.forms |= dict.fromkeys(group, best)
    else:
        result.skipped += [(s, f"no form is faster and as accurate here: {why}") for s in group]


def _written(graph: OnnxGraph, site: Site, forms: NormForms, form: str) -> onnx.ModelProto:
    """A norm in a form as a model of its own. Raises NormswapError where there is none."""
    reads, computes = forms.region(graph, site)
    copy = graph.copy()
    outputs = forms.write(copy, site, form)
    outputs += [copy.value(v.name) for v in computes[len(outputs) :]]
    return copy.extract([copy.value(v.name) for v in reads], outputs)
