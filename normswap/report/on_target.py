"""What of a model a target runs: the result of ``normswap inspect --target``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Node, Value
from normswap.io.save import as_onnx
from normswap.lowering.capability import Capabilities, State, Verdict
from normswap.lowering.capability_files import capabilities_of
from normswap.lowering.supported_forms import (
    check_kind,
    fitting_forms,
    opset_of,
    written_verdict,
)
from normswap.model import Model
from normswap.norms.site import Site, site_nodes
from normswap.passes.dialect import DialectForms
from normswap.passes.remains import remains
from normswap.report.line import Line
from normswap.report.terminal import table

_BAD, _GOOD, _WARN, _DIM = "bold red", "green", "yellow", "dim"
_COLOURS: dict[State, str] = {
    "runs": _GOOD,
    "inaccurate": _WARN,
    "unknown": _WARN,
    "refused": _BAD,
}


@dataclass(frozen=True)
class NormOnTarget:
    """How a target and a norm go together.

    Attributes:
        site: the norm's name.
        state: 'runs', 'inaccurate', 'unknown' or 'refused', of the norm as it stands.
        reason: why it does not run, and the source of that.
        mended_by: the words behind ``swap --to`` of the dialects that it runs, the best first,
            where it does not run the norm as it stands.
        else_by: where no dialect does, the other swaps whose remains it runs.
        others: why it does not run the other dialects.
    """

    site: str
    state: State
    reason: str
    source: str
    mended_by: list[str]
    else_by: list[str]
    others: list[str]


@dataclass(frozen=True)
class Lacking:
    """What else a target does not run, or is not known to run: ``count`` nodes, the first of which
    is called ``first``."""

    operator: str
    count: int
    first: str
    state: State
    reason: str
    source: str


@dataclass(frozen=True)
class OnTarget:
    """What of a model a target runs.

    Attributes:
        model: its name.
        target: its name, with the version that is judged and, in words, what becomes of an operator
            that it does not have (``otherwise``).
        norms: one for each norm.
        lacking: what else the file has that the target does not run.
        unknown: operators of which it is not known.
        limits: what about the file as a whole is in the way.
    """

    model: str
    target: str
    title: str
    version: str
    otherwise: str
    norms: list[NormOnTarget]
    lacking: list[Lacking]
    unknown: list[Lacking]
    limits: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def on_target(model: Model, target: str) -> OnTarget:
    """What of ``model`` a target runs; a torch model as the ONNX file that it would be saved as,
    for a target that takes ONNX.

    ``target``: as ``Lowering`` has it. Raises NormswapError for what is no target, and for a model
    of another kind than the target takes.

    Example: ``on_target(load("vit.onnx"), "mnn").lacking``
    """
    if target == "generic":
        raise NormswapError("--target generic: is no target of which it is known what it runs")
    capabilities = capabilities_of(target)
    if capabilities.takes == "onnx":
        model = as_onnx(model)
    graph, sites = model.graph, model.sites
    check_kind(capabilities, graph)
    fits = fitting_forms(capabilities, graph, sites, DialectForms())
    norms = []
    for site, fit in fits.items():
        stands, runs = fit.stands, fit.stands.state == "runs"
        mended = [] if runs else fit.forms
        rest = [] if runs or mended else _else(capabilities, graph, site)
        others = [] if runs or mended else fit.others
        row = (site.name, stands.state, stands.reason, stands.source, mended, rest, others)
        norms.append(NormOnTarget(*row))
    inside = {node for site in sites for node in site_nodes(graph, site)}
    outside = [n for n in graph.nodes if n not in inside and not n.output.is_constant]
    missing = _lacking(capabilities, graph, outside)
    return OnTarget(
        model.label,
        capabilities.target,
        capabilities.title,
        capabilities.version,
        capabilities.otherwise,
        norms,
        [lack for lack in missing if lack.state != "unknown"],
        [lack for lack in missing if lack.state == "unknown"],
        _limits(capabilities, graph),
    )


def _else(capabilities: Capabilities, graph: Graph, site: Site) -> list[str]:
    """The words of the other swaps of which the target runs what they may leave."""

    def runs(write: Callable[[Graph], Value]) -> bool:
        copy = graph.copy()
        try:
            new = write(copy)
        except NormswapError:
            return False
        return written_verdict(capabilities, graph, copy, site, new).state == "runs"

    return [word for word, forms in remains(graph, site).items() if any(map(runs, forms))]


def _lacking(capabilities: Capabilities, graph: Graph, nodes: Sequence[Node]) -> list[Lacking]:
    found: dict[tuple[str, Verdict], list[Node]] = {}
    for node in nodes:
        verdict = capabilities.verdict(node, opset_of(graph))
        if verdict.state != "runs":
            found.setdefault((node.op, verdict), []).append(node)
    return [
        Lacking(op, len(all_), all_[0].output.name, verdict.state, verdict.reason, verdict.source)
        for (op, verdict), all_ in found.items()
    ]


def _limits(capabilities: Capabilities, graph: Graph) -> list[str]:
    limits = []
    if capabilities.static_shapes and not graph.has_fixed_sizes:
        limits.append("inputs have free sizes: it takes fixed ones alone")
    whole = capabilities.opset_verdict(opset_of(graph))
    if whole.state != "runs":
        limits.append(whole.reason)
    return limits


# -- in the terminal -------------------------------------------------------------------------------


def on_target_view(found: OnTarget) -> RenderableType:
    """A row for each norm, a line for each thing else that the target lacks."""
    wrong = sum(norm.state == "inaccurate" for norm in found.norms)
    runs = sum(norm.state == "runs" for norm in found.norms) + wrong
    title = f"{found.model}: {found.title} ({found.target} {found.version}) runs {runs} of "
    title += f"{len(found.norms)} norms as they stand"
    title += f", {wrong} of them inaccurately" * bool(wrong)
    parts: list[RenderableType] = [Line(title, "bold")]
    if found.norms:
        made = table("site", "as it stands", "swap --to")
        for norm in found.norms:
            told = norm.state if norm.state == "runs" else f"{norm.state}: {norm.reason}"
            made.add_row(Line(norm.site), Line(told, _COLOURS[norm.state]), Line(_swaps(norm)))
        parts.append(made)
    tried = dict.fromkeys(reason for norm in found.norms for reason in norm.others)
    parts += [Line(f"not {reason}", _DIM) for reason in tried]
    parts += [Line(limit, _BAD) for limit in found.limits]
    for lack in found.lacking:
        where = f"{lack.count} {lack.operator}, the first at '{lack.first}'"
        parts.append(Line(f"{where}: {lack.reason} [{lack.source}]", _COLOURS[lack.state]))
    if found.unknown:
        counts = ", ".join(f"{lack.count} {lack.operator}" for lack in found.unknown)
        parts.append(Line(f"not known of: {counts}", _WARN))
    if found.lacking or any(norm.state == "refused" for norm in found.norms):
        parts.append(Line(f"what it does not have: {found.otherwise}", _DIM))
    sources = dict.fromkeys(norm.source for norm in found.norms if norm.source)
    parts += [Line(f"of norms by {source}", _DIM) for source in sources]
    return Group(*parts)


def _swaps(norm: NormOnTarget) -> str:
    if norm.state == "runs":
        return "-"
    if norm.mended_by:
        return ", ".join(norm.mended_by)
    if norm.else_by:
        return f"no dialect; {', '.join(norm.else_by)}"
    return "none"
