"""A stream that only RMSNorms and linear layers read is turned by an orthogonal matrix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from normswap.graph.graph import Array, Value
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.orthogonal import hadamard, principal, random_orthogonal
from normswap.passes.algebra.rules import ROTATION, rotation
from normswap.passes.algebra.spread import Norms, Spread, Start, nodes_of, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal
from normswap.passes.fold_affine import absorb_affine, has_affine
from normswap.passes.insert import insert_linear
from normswap.passes.norm_operator import ROW_NORMS
from normswap.passes.select import why_left

if TYPE_CHECKING:  # data needs torch, and only pca needs data
    from normswap.io.data import Data

DRAWN: Mapping[str, Callable[[int], Array]] = {
    "hadamard": hadamard,
    "random": random_orthogonal,
}
PCA = "pca"
ROTATIONS = (*DRAWN, PCA)
"""What a stream can be turned by."""


class Rotation:
    """x becomes Q x on streams, for an orthogonal Q: RMSNorm(Q x) = Q RMSNorm(x).

    What writes to a stream takes Q, what reads its norms takes Q^T (Ashkboos et al., "QuaRot",
    2024, and "SliceGPT", 2024). All goes into ``edits``, and is written with them. A norm that has
    a weight or a bias which its readers do not take, or that is read by something that takes no Q,
    stays as it is: a product with Q^T in front of it undoes the rotation, one with Q behind it
    turns what it writes to the stream.

    ``located``: all norms of the graph. ``become``: those that are about to be replaced, with the
    RMSNorm that each will be. ``matrix``: Q for a stream that such of ``located`` read.

    Attributes:
        done: the norms on the streams that are turned.
        refused: other norms that were to be, with the reason.
        become: as given, with the norms whose weight has gone into their readers for the rotation.
        inputs: the names of what norms read from now on, where that is another value.
        behind: the norms behind which a product was inserted, by what they give.
        notes: the products that were inserted.
    """

    def __init__(
        self,
        edits: WeightEdits,
        located: Sequence[Site],
        become: Mapping[Site, Site],
        matrix: Callable[[Sequence[Site]], Array],
    ) -> None:
        self.done: list[Site] = []
        self.refused: dict[Site, str] = {}
        self.become = dict(become)
        self.inputs: dict[Site, str] = {}
        self.behind: dict[Value, Site] = {}
        self.notes: list[str] = []
        self._in_front: dict[Site, None] = {}
        self._edits, self._graph, self._matrix = edits, edits.graph, matrix
        self._closed = norm_nodes(self._graph, located)
        self._located = [s for s in located if not why_left(s, ROW_NORMS) and len(s.axes) == 1]

    def make(self, chosen: Collection[Site], first: Mapping[Value, Array]) -> None:
        """Turns the streams of ``chosen``. ``first``: matrices [C, C] that are to be applied to
        what norms write, before Q; those that were are in ``behind``."""
        views, stay = self._views(chosen)
        norms = Norms(self._graph, list(views.values()), ROTATION)
        of_view = {view: site for site, view in views.items()}
        apart = [views[site] for site in stay]
        settled: set[Site] = set()
        for site in (s for s in self._located if s in chosen):
            if why := stay.get(site) or norms.reasons.get(views[site], ""):
                self.refused[site] = why
            if site in settled or why:
                continue

            def spread_by(matrix: Array, view: Site = views[site]) -> Spread:
                return spread(self._edits, self._start(view, matrix, norms, apart), or_part=True)

            trial = spread_by(random_orthogonal(site.normalized_shape[0]))
            reached = [of_view[v] for v in views.values() if trial.reaches(v)]
            settled |= {site, *reached}
            try:
                _check_worth(trial.checked(), len(reached))
                self._absorb(reached, chosen)
                matrix = self._matrix(reached)
                change = spread_by(matrix).checked()
            except Refusal as refusal:
                self.refused |= dict.fromkeys([site, *reached], str(refusal))
                continue
            change.act()
            self._graph.prune()  # LayerScales that are gone would stand in the way
            self.done += reached
            self._undo_in_front([of_view[v] for v in change.in_front], matrix)
            self._turn_behind({v: of_view[s] for v, s in change.behind.items()}, matrix, first)
        for site in (*self._in_front, *self.behind.values()):
            self.refused.pop(site, None)  # told of by the notes

    # -- planning ------------------------------------------------------------------------------

    def _views(self, chosen: Collection[Site]) -> tuple[dict[Site, Site], dict[Site, str]]:
        """How each norm will look to a rotation, and which do not turn along, with the reason."""
        views, stay = {}, {}
        for site in self._located:
            norm = self.become.get(site, site)
            views[site] = replace(norm, kind="rms_norm", weight=None, bias=None)
            if why := self._readers_refusal(site):
                stay[site] = why
            elif norm.kind != "rms_norm":
                stay[site] = f"it stays a {norm.kind}"
            elif has_affine(norm) and (site in self.become or site not in chosen):
                stay[site] = "its weight and bias stay"
        return views, stay

    def _readers_refusal(self, site: Site) -> str:
        """Why what reads a norm cannot take a rotation of it; '' if it can."""
        x, y = self._graph.value(site.input), self._graph.value(site.output)
        if y.rank is None:
            return "the shape of its output is not known"
        size = site.normalized_shape[0]
        matrix, none = random_orthogonal(size), np.zeros(size)
        change = ChannelMap.along(matrix, none, site.axes[0], y.rank)
        own = frozenset(nodes_of(self._graph, site))
        return spread(self._edits, Start(y, change, True, own, x, self._closed)).refusal

    def _start(self, view: Site, matrix: Array, norms: Norms, apart: Sequence[Site]) -> Start:
        x = self._graph.value(view.input)
        change = rotation(matrix, view.axes[0], len(x.shape or ()))
        return Start(x, change, downward=False, norms=norms, joins=True, apart=apart)

    def _absorb(self, sites: Iterable[Site], chosen: Collection[Site]) -> None:
        """Weights and biases that RMSNorms have had go into their readers."""
        for site in (s for s in sites if s in chosen and s not in self.become):
            if has_affine(site):
                absorb_affine(self._edits, site, self._closed)
                self.become[site] = replace(site, weight=None, bias=None)

    # -- products that are inserted ------------------------------------------------------------

    def _undo_in_front(self, sites: Sequence[Site], matrix: Array) -> None:
        undone: dict[Value, Value] = {}
        for site in sites:
            x = self._graph.value(site.input)
            own = [node for node in nodes_of(self._graph, site) if x in node.inputs]
            if x not in undone:
                name = f"{site.name}.turned_back"
                undone[x] = insert_linear(
                    self._graph, x, site.axes[0], matrix.T, None, name, x.producer
                )
                told = f"in front of '{site.name}' a product undoes the rotation"
                self.notes.append(f"{told}: {self._readers_refusal(site) or 'its weight stays'}")
            for node in own:
                for index in [i for i, v in enumerate(node.inputs) if v is x]:
                    self._graph.set_input(node, index, undone[x])
            self.inputs[site] = undone[x].name
            self._in_front[site] = None

    def _turn_behind(
        self, norms: Mapping[Value, Site], matrix: Array, first: Mapping[Value, Array]
    ) -> None:
        for value, site in norms.items():
            own = set(value.readers)
            whole = matrix @ first[value] if value in first else matrix
            name = f"{site.name}.turned"
            turned = insert_linear(
                self._graph, value, site.axes[0], whole, None, name, value.producer
            )
            keep = [node for node in value.readers if node not in own]
            self._graph.replace_uses(value, turned, keep=keep)
            for other in (s for s in self._located if s.input == value.name):
                self.inputs.setdefault(other, turned.name)
            self.behind[value] = site
            self.notes.append(f"behind '{site.name}' a product turns what it writes to the stream")


def _check_worth(change: Spread, count: int) -> None:
    """Raises Refusal where more products would have to be inserted than norms gain by it."""
    inserted = len(change.behind) + len(change.in_front)
    if inserted > count:
        raise Refusal(
            f"{inserted} products would have to be inserted, at norms that stay as they are, for "
            f"the sake of {count}"
        )


def principal_directions(model: Model, data: Data, sites: Sequence[Site]) -> Array:
    """The principal directions [C, C], in rows, of what the norms ``sites`` of one stream give
    before weight and bias, all tokens together; of a LayerNorm without the mean."""
    from normswap.fit.calibration import calibration_batches

    size = sites[0].normalized_shape[0]
    batches = calibration_batches(model, sites, data)
    names, graph = list(batches[0]), model.graph
    run = graph.slice([graph.value(n) for n in names], [graph.value(s.input) for s in sites])
    moments = np.zeros((size, size))
    for batch in batches:
        for site, array in zip(sites, run([batch[name] for name in names]), strict=True):
            rows = np.moveaxis(array, site.axes[0], -1).reshape(-1, size).astype(np.float64)
            if site.kind == "layer_norm":
                rows -= rows.mean(1, keepdims=True)
            rows /= np.sqrt(np.square(rows).mean(1, keepdims=True) + site.epsilon)
            moments += rows.T @ rows
    return principal(moments)
