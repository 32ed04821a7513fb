"""The form of every norm of an ONNX graph that is the fastest one on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import onnx

from normswap.graph.graph import Value
from normswap.graph.onnx.graph import OnnxGraph
from normswap.lowering.choice import choose, described, measure
from normswap.lowering.runtimes import Runtime
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.passes.norm_forms import (
    KINDS,
    OPERATOR,
    WITH_SUM,
    ChosenForms,
    operator_of,
    refusal,
    write,
)
from normswap.passes.norm_with_sum import sum_read_by

_ORIGINAL = "the original"


def tuned(
    model: Model, sites: Sequence[Site], runtime: Runtime, progress: Progress | None
) -> ChosenForms:
    """Measures one norm of each sort, and takes what wins for all of its sort."""
    graph = model.graph
    assert isinstance(graph, OnnxGraph)
    groups: dict[Hashable, list[Site]] = defaultdict(list)
    result = ChosenForms()
    for site in sites:
        forms = _forms(graph, site)
        if forms:
            groups[_sort(graph, site, forms)].append(site)
        else:
            result.skipped.append((site, f"no other form of it is known for {runtime.name}"))
    for number, group in enumerate(groups.values()):
        if progress:
            progress(number, len(groups), "measuring")
        _settle(model, group, runtime, result)
    if progress:
        progress(len(groups), len(groups), "measuring")
    return result


def _forms(graph: OnnxGraph, site: Site) -> list[str]:
    forms = [OPERATOR] if site.spelling == "decomposed" and site.kind in KINDS else []
    return forms + ([WITH_SUM] if sum_read_by(graph, site) is not None else [])


def _sort(graph: OnnxGraph, site: Site, forms: Sequence[str]) -> Hashable:
    """What norms that take the same time have in common."""
    x, y = graph.value(site.input), graph.value(site.output)
    spelling = tuple(node.op for node in graph.ancestors([y], stop=[x]))
    affine = site.weight is None, site.bias is None
    return site.kind, site.axes, x.shape, x.dtype, y.dtype, affine, spelling, tuple(forms)


def _settle(model: Model, group: Sequence[Site], runtime: Runtime, result: ChosenForms) -> None:
    graph, site = model.graph, group[0]
    assert isinstance(graph, OnnxGraph)
    x, y = graph.value(site.input), graph.value(site.output)
    add = sum_read_by(graph, site)
    given = [x] if add is None else add.dynamic_inputs()
    wanted = [y] if add is None else [y, x]
    protos = {_ORIGINAL: graph.extract(given, wanted)}
    names = {}
    for form in _forms(graph, site):
        proto = _written(model, site, form, given, wanted)
        if isinstance(proto, str):
            result.skipped += [(s, proto) for s in group]
            return
        name = operator_of(site, form)
        protos[name], names[name] = proto, form
    shapes = [(tuple(v.shape or ()), v.dtype or np.dtype(np.float32)) for v in given]
    measured = measure(runtime, protos, shapes, graph.slice(given, wanted, np.float64))
    default = next((name for name, form in names.items() if form == OPERATOR), _ORIGINAL)
    best = choose(measured, default)
    why = described(measured, _ORIGINAL)
    size = "x".join(str(s) for s in x.shape or ())
    taken = best if best != _ORIGINAL else "left as they are"
    result.notes.append(
        f"{len(group)} norms of {size} {x.dtype} like '{site.name}': {taken}; {why}"
    )
    if best in names:
        result.forms |= dict.fromkeys(group, names[best])
    else:
        result.skipped += [(s, f"no form is faster and as accurate here: {why}") for s in group]


def _written(
    model: Model, site: Site, form: str, given: Sequence[Value], wanted: Sequence[Value]
) -> onnx.ModelProto | str:
    """A norm in a form as a model of its own; or why there is none."""
    graph = model.copy().graph
    assert isinstance(graph, OnnxGraph)
    reason = refusal(graph, site, form)
    if reason is not None:
        return reason
    inputs = [graph.value(v.name) for v in given]
    outputs = write(graph, site, form)
    outputs += [graph.value(v.name) for v in wanted[len(outputs) :]]
    return graph.extract(inputs, outputs)
