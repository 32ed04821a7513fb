"""The form of every norm that a target has, by its capability file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Value
from normswap.graph.onnx.graph import OnnxGraph
from normswap.lowering.capability import Capabilities, Verdict, worst
from normswap.lowering.onnx_forms import fastest_forms, norm_sort
from normswap.lowering.targets import runtime_of
from normswap.model import Progress
from normswap.norms.site import Site, site_nodes
from normswap.passes.base import ChosenForms, NormForms

_SPELLED_OUT = "elementary"


@dataclass
class SupportedForm:
    """A ``Chooser`` that keeps the norms which a target runs as they stand, and gives the others
    the first form that it runs; with ``tune`` the fastest, for all of them.

    Raises NormswapError for a graph of another kind than the target is given, and with ``tune`` for
    a target that cannot be measured on this machine.
    """

    capabilities: Capabilities
    tune: bool = False
    progress: Progress | None = field(default=None, repr=False)

    def __call__(self, graph: Graph, sites: Sequence[Site], forms: NormForms) -> ChosenForms:
        check_kind(self.capabilities, graph)
        fitting = fitting_forms(self.capabilities, graph, sites, forms)
        if self.tune and isinstance(graph, OnnxGraph):
            runtime = runtime_of(self.capabilities.target)
            offered = _Offered(forms, {site: fit.forms for site, fit in fitting.items()})
            return fastest_forms(graph, sites, offered, runtime, self.progress)
        result = ChosenForms()
        for site, fit in fitting.items():
            if fit.forms and fit.stands.state != "runs":
                result.forms[site] = fit.forms[0]
            else:
                result.skipped.append((site, self._why(fit)))
        for form in dict.fromkeys(result.forms.values()):
            done = [site for site, chosen in result.forms.items() if chosen == form]
            reasons = dict.fromkeys(fitting[site].stands.reason for site in done)
            result.notes.append(f"{len(done)} norms: {form}, for {'; '.join(reasons)}")
        return result

    def _why(self, fit: Fit) -> str:
        target = self.capabilities.target
        if fit.stands.state == "runs":
            return f"{target} runs it as it stands"
        return "; ".join([fit.stands.reason, *fit.others])


@dataclass(frozen=True)
class Fit:
    """How a target and a norm go together.

    ``stands``: whether it runs the norm as it stands. ``forms``: those that it runs, the best
    first. ``others``: why it does not run the other ones, 'FORM: REASON' each.
    """

    stands: Verdict
    forms: list[str]
    others: list[str]


def check_kind(capabilities: Capabilities, graph: Graph) -> None:
    """Raises NormswapError for a graph of another kind than the target is given."""
    if capabilities.takes == "torch" and graph.kind != "fx":
        raise NormswapError(
            f"--target {capabilities.target}: takes torch models; give the module or its .pt2"
        )
    if capabilities.takes == "onnx" and graph.kind != "onnx":
        raise NormswapError(
            f"--target {capabilities.target}: takes ONNX models; `normswap export` makes one"
        )


def opset_of(graph: Graph) -> int | None:
    """That of an ONNX graph."""
    return graph.opset if isinstance(graph, OnnxGraph) else None


def fitting_forms(
    capabilities: Capabilities, graph: Graph, sites: Sequence[Site], forms: NormForms
) -> dict[Site, Fit]:
    """How the target and each of ``sites`` go together; one of each sort of norm is tried."""
    known: dict[object, Fit] = {}
    result = {}
    for site in sites:
        candidates = forms.candidates(graph, site)
        sort = norm_sort(graph, site, candidates)
        if sort not in known:
            known[sort] = _fit(capabilities, graph, site, forms, candidates)
        result[site] = known[sort]
    return result


def _fit(
    capabilities: Capabilities,
    graph: Graph,
    site: Site,
    forms: NormForms,
    candidates: Sequence[str],
) -> Fit:
    stands = capabilities.verdict_of(site_nodes(graph, site), opset_of(graph))
    if site.spelling != "op":  # so it is in the operators of this dialect, in whatever order
        stands = worst([stands, capabilities.dialect_verdict(_SPELLED_OUT)])
    fit = Fit(stands, [], [])
    for form in candidates:
        verdict = _verdict(capabilities, graph, site, forms, form)
        if verdict.state == "runs":
            fit.forms.append(form)
        else:
            fit.others.append(f"{form}: {verdict.reason}")
    return fit


def _verdict(
    capabilities: Capabilities, graph: Graph, site: Site, forms: NormForms, form: str
) -> Verdict:
    """Whether the target runs a norm in a form, which is written into a copy of the graph."""
    copy = graph.copy()
    try:
        (new,) = forms.write(copy, site, form)
    except NormswapError as error:
        return Verdict("refused", str(error))
    written = written_verdict(capabilities, graph, copy, site, new)
    return worst([written, capabilities.dialect_verdict(form)])


def written_verdict(
    capabilities: Capabilities, graph: Graph, copy: Graph, site: Site, new: Value
) -> Verdict:
    """Whether the target runs what a copy of ``graph`` has in place of a norm, up to ``new``; if
    the opset was raised for it, whether the target reads that."""
    nodes, opset = copy.ancestors([new], stop=[copy.value(site.input)]), opset_of(copy)
    verdict = capabilities.verdict_of(nodes, opset)
    raised = opset != opset_of(graph)
    return worst([verdict, capabilities.opset_verdict(opset)]) if raised else verdict


class _Offered:
    """The forms of another ``NormForms`` that a target runs."""

    def __init__(self, forms: NormForms, offered: dict[Site, list[str]]) -> None:
        self._forms, self._offered = forms, offered

    def defaults(self, sites: Sequence[Site]) -> ChosenForms:
        chosen = self._forms.defaults(sites)
        runs = {s: form for s, form in chosen.forms.items() if form in self._offered[s]}
        return ChosenForms(runs, chosen.skipped)

    def candidates(self, graph: Graph, site: Site) -> list[str]:
        return self._offered[site]

    def region(self, graph: Graph, site: Site) -> tuple[list[Value], list[Value]]:
        return self._forms.region(graph, site)

    def write(self, graph: Graph, site: Site, form: str) -> list[Value]:
        return self._forms.write(graph, site, form)
