"""A BatchNorm between the two linear layers of each FFN, for training to make use of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.fit.calibration import calibration_batches, over_processes, own_share
from normswap.fit.channelwise import identity
from normswap.fit.moments import ChannelMoments
from normswap.fit.sweep import Readings, Stop, sweep
from normswap.fit.tokens import Masks, rows
from normswap.graph.graph import Graph, Value
from normswap.graph.linear import Linear
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site
from normswap.norms.structure import ffn_of, residuals
from normswap.options import option
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.calibrated import Fitted, fitted_sites, needed_data
from normswap.passes.insert import insert_batch_norm
from normswap.passes.select import Selection, select_sites

POSITIONS = ("before", "after")
_EPSILON = 1e-5  # the default of BatchNorm modules


@dataclass(kw_only=True)
class InsertFfnBatchNorm(Pass):
    """h = act(BN(W1 x + b1)) or BN(act(W1 x + b1)), in every FFN of two stages of linear layers.

    Exact at evaluation: gamma = sqrt(var + eps) and beta = mean undo the statistics of the BN's own
    input, which come from calibration data. Yao et al. (ICCVW 2021) report that it keeps training
    with BatchNorm from crashing. Skips norms whose FFN has not that shape.

    Attributes:
        data: unlabelled inputs, as ``load_data`` gives them.
        sites: norms of the ``*_mlp`` roles, whose FFNs get one.
        position: 'before' the activation (behind each first linear layer: two in a SwiGLU, one over
            both halves where they are packed) or 'after' it (in front of the second).

    Examples:
        >>> InsertFfnBatchNorm(data=load_data("images", model))(model).model
    """

    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    data: Data | None = None
    sites: Selection | None = "role=*_mlp"
    position: str = option("before", "before or after the FFN's activation.", choices=POSITIONS)

    def run(self, model: Model) -> PassResult:
        result = model.copy()
        located = model.sites
        chosen = [
            s for s in select_sites(located, self.sites) if s.role.endswith("_mlp") and not s.fixed
        ]
        if not chosen:
            return PassResult(model, False)
        batches = calibration_batches(
            model, chosen, own_share(needed_data(self.data, "FFN BatchNorm"))
        )
        fitted = fitted_sites(model.graph, located, chosen, batches)
        stops, skipped = ffn_stops(result.graph, fitted, self.position)
        unfit = {id(site) for site, _ in skipped}
        done = [s for s in chosen if id(s) not in unfit]
        if not stops:
            return PassResult(model, False, [], skipped)
        for _ in sweep(model.graph, result.graph, batches, stops):
            pass
        return PassResult(result, True, done, skipped)


def ffn_stops(
    graph: Graph, sites: Sequence[Fitted], position: str
) -> tuple[list[Stop], list[tuple[Site, str]]]:
    """Where the FFNs of the ``*_mlp`` sites get their BatchNorm; skipped ones with the reason.

    A BatchNorm is named after its linear layer: ``fc1`` gets ``fc1_bn``, and behind the activation
    ``fc1_act_bn``.
    """
    stops: list[Stop] = []
    skipped = []
    branches = residuals(graph)
    for fitted in sites:
        if not fitted.site.role.endswith("_mlp"):
            continue
        ffn = ffn_of(graph, branches, fitted.site)
        if ffn is None:
            skipped.append((fitted.site, "its FFN is not two stages of linear layers"))
        elif position == "before":
            names = [f"{_owner(linear)}_bn" for linear in ffn.first]
            pairs = zip(ffn.first, names, strict=True)
            stops += [_Insert(graph, f.output, f.output_axis, n, fitted.masks) for f, n in pairs]
        else:
            name = f"{_owner(ffn.first[0])}_act_bn"
            second = ffn.second
            stops.append(_Insert(graph, second.input, second.axis, name, fitted.masks))
    return stops, skipped


def _owner(linear: Linear) -> str:
    owner, _, last = linear.name.rpartition(".")
    return owner if last == "weight" else linear.product.scope or linear.name


class _Insert(Stop):
    """A BatchNorm behind ``value`` that changes nothing."""

    def __init__(
        self, graph: Graph, value: Value, axis: int, name: str, masks: Masks | None
    ) -> None:
        self.reads = (value,)
        self._graph, self._axis, self._name, self._masks = graph, axis, name, masks

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        value = reads[0]
        moments = ChannelMoments()
        for part in rows(readings, [self._axis], self._masks):
            moments.add(part.arrays[0], -1)
        moments = over_processes(moments)
        constants = identity(moments.mean, moments.variance, _EPSILON)
        like = value.producer
        try:
            new, reading = insert_batch_norm(
                self._graph, value, self._axis, constants, self._name, like
            )
        except Refusal as refusal:
            raise NormswapError(f"'{self._name}': {refusal}; leave it out") from None
        self._graph.replace_uses(value, new, keep=reading)
        return {value: new}
