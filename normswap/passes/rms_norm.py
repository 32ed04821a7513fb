"""LayerNorms become RMSNorms: the mean that they subtract is taken out of the weights instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Value
from normswap.graph.operators import norm_operator
from normswap.model import Model
from normswap.norms.site import Site
from normswap.options import option
from normswap.passes.algebra.rules import MEAN, mean_subtraction
from normswap.passes.algebra.spread import Norms, Spread, Start, norm_nodes, streams
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import NormsWritten, Pass, PassResult, Refusal
from normswap.passes.fold_affine import absorb_affine, has_affine
from normswap.passes.norm_operator import ROW_NORMS, replace_norm, spell_rms_norm
from normswap.passes.rotate import DRAWN, PCA, ROTATIONS, Rotation, principal_directions
from normswap.passes.select import select_sites, why_left

if TYPE_CHECKING:  # data needs torch, and only pca needs data
    from normswap.io.data import Data

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

    With ``rotate`` each of these streams is turned by an orthogonal matrix Q as well
    (``rotate.py``), and so are the streams of norms that were RMSNorms before. The notes say which
    are not, and why.

    Attributes:
        sites: which norms; see ``select_sites``. All by default.
        rotate: what Q is: 'hadamard' (entries of one magnitude with random signs), 'random'
            (orthogonal), 'pca' (the principal directions of what the stream's norms give on
            ``data``, largest first). None for no rotation.
        data: for 'pca' alone, unlabelled inputs as ``load_data`` gives them; ``swap`` fills it in.

    Raises:
        NormswapError: 'pca' without data, data without 'pca', and data that is unfit.

    Examples:
        >>> result = RmsNorm()(model)
        >>> [reason for site, reason in result.skipped]
        >>> swap(model, RmsNorm(rotate="hadamard")).notes
    """

    to: ClassVar[str] = "rmsnorm"
    summary: ClassVar[str] = "exact, the residual stream is centred by its weights."
    exact: ClassVar[bool] = True
    takes_data: ClassVar[bool] = True
    lowering: ClassVar[tuple[str, ...]] = ("kernels",)

    rotate: str | None = option(
        None,
        "turn each stream by an orthogonal matrix, which spreads outliers over all channels; pca "
        "takes its directions from DATA.",
        choices=ROTATIONS,
    )
    data: Data | None = None

    def run(self, model: Model) -> PassResult:
        matrix = self._matrix(model)
        chosen = select_sites(model.sites, self.sites)
        kinds = ("layer_norm",) if matrix is None else ROW_NORMS
        if all(why_left(site, kinds) for site in chosen):
            return PassResult(model, False, [], [(s, why_left(s, kinds)) for s in chosen])
        result = model.copy()
        try:
            result.graph.require(norm_operator("rms_norm"))
        except NormswapError as error:
            why = str(error)
        else:
            swapped = _swapped(model, result, chosen, replace_norm, matrix)
            why = result.graph.load_refusal() if swapped.modified else ""
            if not why or model.graph.load_refusal():
                return swapped
        swapped = _swapped(model, model.copy(), chosen, spell_rms_norm, matrix)
        notes = [*swapped.notes, f"RMSNorms are spelled out: {why}"] if swapped.modified else []
        return replace(swapped, notes=notes)

    def _matrix(self, model: Model) -> Matrix | None:
        """What the stream of some norms is turned by."""
        if (self.data is None) == (self.rotate == PCA):
            raise NormswapError(
                "--rotate pca takes its directions from calibration data: give --data"
                if self.data is None
                else "--to rmsnorm: --data is for --rotate pca; leave it out"
            )
        if self.rotate is None:
            return None
        if self.data is not None:
            data = self.data
            return lambda sites: principal_directions(model, data, sites)
        draw = DRAWN[self.rotate]
        return lambda sites: draw(sites[0].normalized_shape[0])


Writer = Callable[[Graph, Site, Site], Value]
Matrix = Callable[[Sequence[Site]], Array]


def _swapped(
    model: Model, result: Model, chosen: Sequence[Site], write: Writer, matrix: Matrix | None
) -> PassResult:
    """The norms of ``chosen`` swapped in ``result``, a copy of ``model``, by what ``write``
    writes; with a ``matrix`` for each stream these are turned."""
    located = model.sites
    unfit = {s: why for s in chosen if (why := why_left(s, ("layer_norm",)))}
    swap = _Swap(result.graph, located)
    swap.centre([s for s in chosen if s not in unfit])
    reasons = {**swap.reasons, **unfit}
    done = set(swap.done)
    if matrix is not None:
        refused = swap.turn(chosen, matrix)
        done |= swap.turned
        reasons |= {s: why for s, why in refused.items() if s.kind == "rms_norm"}
    skipped = [(s, reasons[s]) for s in chosen if s not in done]
    if not done:
        return PassResult(model, False, [], skipped)
    written = swap.write(write)
    values = {site: value.name for site, value in written.items()}
    done_in_order = [site for site in chosen if site in done]
    return NormsWritten(result, True, done_in_order, skipped, swap.notes, values=values)


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
        self.turned: set[Site] = set()
        self._become: dict[Site, Site] | None = None
        self._inputs: dict[Site, str] = {}

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

    def turn(self, chosen: Sequence[Site], matrix: Matrix) -> dict[Site, str]:
        """Turns the streams of ``chosen``; those norms whose streams are not, with the reason."""
        self._become = self._without_affines()
        rotation = Rotation(self.edits, self.located, self._become, matrix)
        means = {
            value: mean_subtraction(site.normalized_shape[0], 0, 1).linear
            for value, site in self.subtractions.items()
        }
        rotation.make(chosen, means)
        self._become, self._inputs = rotation.become, rotation.inputs
        self.turned = set(rotation.done)
        for value in rotation.behind:
            self.subtractions.pop(value, None)
        reasons: dict[str, list[Site]] = {}
        for site, why in rotation.refused.items():
            if site in self.done:
                reasons.setdefault(why, []).append(site)
        self.notes += [
            f"the stream of '{s[0].name}'{_and_more(s)} is not turned: {w}"
            for w, s in reasons.items()
        ]
        self.notes += rotation.notes
        return rotation.refused

    def write(self, write: Writer) -> dict[Site, Value]:
        """Writes norms, by ``write``, and weights into the graph; the new values of the norms."""
        become = self._without_affines() if self._become is None else self._become
        written = {  # in reverse, for a norm may read the output of the one before it
            site: write(self.graph, norm, replace(site, input=self._inputs.get(site, site.input)))
            for site, norm in reversed(become.items())
        }
        for value, site in self.subtractions.items():
            self._subtract_mean(written.get(site, value), site.axes[0], site.name)
        self.edits.write()
        self.graph.prune()
        return written

    def _without_affines(self) -> dict[Site, Site]:
        """The norms that are swapped, in order, with what each becomes."""
        return {site: self._without_affine(site) for site in self.located if site in self.done}

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


def _and_more(sites: Sequence[Site]) -> str:
    return f" and {len(sites) - 1} more" if len(sites) > 1 else ""


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
