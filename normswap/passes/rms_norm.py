"""LayerNorms become RMSNorms: the mean that they subtract is taken out of the weights instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Value
from normswap.graph.operators import norm_operator
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.algebra.rules import MEAN, mean_subtraction
from normswap.passes.algebra.spread import Norms, Spread, Start, norm_nodes, streams
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import NormsWritten, Pass, PassResult, Refusal
from normswap.passes.fold_affine import absorb_affine, has_affine
from normswap.passes.norm_operator import replace_norm, spell_rms_norm
from normswap.passes.select import select_sites, why_left

_WORTH = 2  # norms that have to gain by it, for a mean to be subtracted in the graph


@dataclass(kw_only=True)
class RmsNorm(Pass):
    """y = x / sqrt(E[x^2] + eps) * gamma + beta in place of a LayerNorm whose input has no mean.

    Exact. LayerNorm(x) = LayerNorm(P x) with P = I - 1 1^T / C, and P x has no mean, so LayerNorm
    and RMSNorm (Zhang and Sennrich 2019) agree on it. P goes up by the table in
    ``algebra/rules.py`` into whatever writes to x: W' = P W, b' = P b for linear layers and
    convolutions, c' = P c for class tokens, positions and tables of embeddings; LayerScale goes
    along, W' = P diag(s) W. Every reader of x and of the stream that it is a part of has to be a
    LayerNorm over the same channels, or to move or sum up. A norm that writes to the stream (CLIP's
    ln_pre) has its mean subtracted behind it. gamma and beta go into the readers where those can
    take them (``fold_affine.py``), else they stay as the operator's weight and one Add. ONNX's
    RMSNormalization needs opset 23: an older file is raised to it. Where that cannot be, or a
    runtime that runs the file would not load it then, RMSNorms are spelled out instead.
    Skips, with the reason, norms of other kinds or over several axes, and those on a stream that
    is an output or is read by anything else, as in post-norm models.

    Attributes:
        sites: which norms; see ``select_sites``. All by default.

    Examples:
        >>> result = RmsNorm()(model)
        >>> [reason for site, reason in result.skipped]
    """

    to: ClassVar[str] = "rmsnorm"
    summary: ClassVar[str] = "exact, the residual stream is centred by its weights."
    exact: ClassVar[bool] = True
    lowering: ClassVar[tuple[str, ...]] = ("kernels",)

    def run(self, model: Model) -> PassResult:
        chosen = select_sites(model.sites, self.sites)
        if all(_why_not(site) for site in chosen):
            return PassResult(model, False, [], [(s, _why_not(s)) for s in chosen])
        result = model.copy()
        try:
            result.graph.require(norm_operator("rms_norm"))
        except NormswapError as error:
            why = str(error)
        else:
            swapped = _swapped(model, result, chosen, replace_norm)
            why = result.graph.load_refusal() if swapped.modified else ""
            if not why or model.graph.load_refusal():
                return swapped
        swapped = _swapped(model, model.copy(), chosen, spell_rms_norm)
        notes = [*swapped.notes, f"RMSNorms are spelled out: {why}"] if swapped.modified else []
        return replace(swapped, notes=notes)


Writer = Callable[[Graph, Site, Site], Value]


def _swapped(model: Model, result: Model, chosen: Sequence[Site], write: Writer) -> PassResult:
    """The norms of ``chosen`` swapped in ``result``, a copy of ``model``, by what ``write``
    writes."""
    located = model.sites
    unfit = {s: why for s in chosen if (why := _why_not(s))}
    todo = [s for s in chosen if s not in unfit]
    swap = _Swap(result.graph, located)
    swap.centre(todo)
    skipped = [(s, unfit.get(s) or swap.reasons[s]) for s in chosen if s not in swap.done]
    if not swap.done:
        return PassResult(model, False, [], skipped)
    written = swap.write(write)
    values = {site: value.name for site, value in written.items()}
    done = [site for site in todo if site in swap.done]
    return NormsWritten(result, True, done, skipped, swap.notes, values=values)


def _why_not(site: Site) -> str:
    return why_left(site, ("layer_norm",))


class _Swap:
    """Takes the mean out of one stream after the other, then writes the norms."""

    def __init__(self, graph: Graph, located: Sequence[Site]) -> None:
        self.graph, self.edits, self.located = graph, WeightEdits(graph), located
        self.norms = Norms(graph, located, MEAN)
        self.closed = norm_nodes(graph, located)
        self.done: set[Site] = set()
        self.reasons = dict(self.norms.reasons)
        self.notes: list[str] = []
        self.subtractions: dict[Value, Site] = {}  # the norm by its output

    def centre(self, todo: Sequence[Site]) -> None:
        for change, stream in streams(self.edits, self.norms, todo, self._start):
            if refusal := change.refusal or _not_worth_it(change, stream):
                self.reasons |= dict.fromkeys(stream, refusal)
                continue
            change.act()
            self.graph.prune()  # LayerScales that are gone would stand in the way
            self.done.update(stream)
            self.subtractions |= change.behind

    def _start(self, site: Site) -> Start:
        x = self.graph.value(site.input)
        change = mean_subtraction(site.normalized_shape[0], site.axes[0], len(x.shape or ()))
        # No row becomes longer without its mean.
        return Start(x, change, downward=False, norms=self.norms, joins=True, bounded=True)

    def write(self, write: Writer) -> dict[Site, Value]:
        """Writes norms, by ``write``, and weights into the graph; the new values of the norms."""
        kept = {site: self._without_affine(site) for site in self.located if site in self.done}
        written = {  # in reverse, for a norm may read the output of the one before it
            site: write(self.graph, norm, site) for site, norm in reversed(kept.items())
        }
        for value, site in self.subtractions.items():
            self._subtract_mean(written.get(site, value), site.axes[0], site.name)
        self.edits.write()
        self.graph.prune()
        return written

    def _without_affine(self, site: Site) -> Site:
        """The RMSNorm in place of ``site``, whose readers take over what they can."""
        norm = replace(site, kind="rms_norm")
        if has_affine(site):
            try:
                absorb_affine(self.edits, site, self.closed)
            except Refusal as refusal:
                self.notes.append(f"'{site.name}' keeps its weight and bias: {refusal}")
                return norm
        return replace(norm, weight=None, bias=None)

    def _subtract_mean(self, value: Value, axis: int, name: str) -> None:
        like = value.producer
        attributes = {"axes": (axis,), "keepdims": 1}
        mean = self.graph.insert("ReduceMean", [value], attributes, name=f"{name}.mean", like=like)
        rest = self.graph.insert("Sub", [value, mean], name=f"{name}.centred", like=like)
        readers = [v.producer for v in (mean, rest) if v.producer is not None]
        self.graph.replace_uses(value, rest, keep=readers)
        self.notes.append(f"behind '{name}' a mean is subtracted, for all norms on its stream")


def _not_worth_it(change: Spread, stream: Sequence[Site]) -> str:
    """Why a stream that can lose its mean keeps it; '' if it does not."""
    writers = [site.name for site in change.behind.values()]
    if not writers or (len(writers) == 1 and len(stream) >= _WORTH):
        return ""
    others = f" and {len(writers) - 1} more" if len(writers) > 1 else ""
    return (
        f"norms write to its stream ('{writers[0]}'{others}), behind which a mean would have to be "
        f"subtracted for the sake of {len(stream)}"
    )
